"""Merge domain-specialised language models and search for the best merge, in parallel on Ray.

`adapter`, `advise`, `tune`, `merge`, `evaluate`, `gguf`, `plan`, `push`, `replay` and `verify` are the commands of the
same names; each returns a typed result. `open_run` looks at a run that is there, or under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.commands.adapter import AdapterResult, adapter
    from mergebench_ray.commands.advice import Advice
    from mergebench_ray.commands.advise import advise
    from mergebench_ray.commands.evaluate import EvaluationResult, evaluate
    from mergebench_ray.commands.gguf import GgufResult, gguf
    from mergebench_ray.commands.merge import MergeResult, merge
    from mergebench_ray.commands.opened_run import OpenedRun, open_run
    from mergebench_ray.commands.plan import plan
    from mergebench_ray.commands.push import PushResult, push
    from mergebench_ray.commands.replay import replay
    from mergebench_ray.commands.started_run import StartedRun
    from mergebench_ray.commands.tune import tune
    from mergebench_ray.commands.tune_result import TuneResult
    from mergebench_ray.commands.verify import VerifyResult, verify
    from mergebench_ray.config import ModelRef, Recipe, Suite, Sweep
    from mergebench_ray.errors import InputError, StoppedError
    from mergebench_ray.runs.status import RunStatus
    from mergebench_ray.runs.trials import Trial
    from mergebench_ray.search.callbacks import Callback
    from mergebench_ray.search.replay.replay import ReplayResult

_HOMES = {
    "AdapterResult": "commands.adapter",
    "Advice": "commands.advice",
    "Callback": "search.callbacks",
    "EvaluationResult": "commands.evaluate",
    "GgufResult": "commands.gguf",
    "InputError": "errors",
    "MergeResult": "commands.merge",
    "ModelRef": "config",
    "OpenedRun": "commands.opened_run",
    "PushResult": "commands.push",
    "Recipe": "config",
    "ReplayResult": "search.replay.replay",
    "RunStatus": "runs.status",
    "StartedRun": "commands.started_run",
    "StoppedError": "errors",
    "Suite": "config",
    "Sweep": "config",
    "Trial": "runs.trials",
    "TuneResult": "commands.tune_result",
    "VerifyResult": "commands.verify",
    "adapter": "commands.adapter",
    "advise": "commands.advise",
    "evaluate": "commands.evaluate",
    "gguf": "commands.gguf",
    "merge": "commands.merge",
    "open_run": "commands.opened_run",
    "plan": "commands.plan",
    "push": "commands.push",
    "replay": "commands.replay",
    "tune": "commands.tune",
    "verify": "commands.verify",
}

__all__ = [
    "AdapterResult",
    "Advice",
    "Callback",
    "EvaluationResult",
    "GgufResult",
    "InputError",
    "MergeResult",
    "ModelRef",
    "OpenedRun",
    "PushResult",
    "Recipe",
    "ReplayResult",
    "RunStatus",
    "StartedRun",
    "StoppedError",
    "Suite",
    "Sweep",
    "Trial",
    "TuneResult",
    "VerifyResult",
    "adapter",
    "advise",
    "evaluate",
    "gguf",
    "merge",
    "open_run",
    "plan",
    "push",
    "replay",
    "tune",
    "verify",
]

# Lazily, so that importing the package in every Ray worker does not import torch, vLLM and the rest.
__getattr__ = lazy_names(__name__, _HOMES)
