"""A run's folder as `tune` leaves it, with made-up trials and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from made_up_trials import DOMAINS, made_up_trials
from mergebench_ray.config import Sweep
from mergebench_ray.runs.items import write_questions
from mergebench_ray.runs.opening import locked_run
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial

SWEEP = Sweep.model_validate(
    {"name": "made-up", "suite": "smollm2-mini", "methods": {"ties": None, "task_arithmetic": None}}
)
ITEMS = 4
"""Of each domain."""


def write_run(folder: Path, trials: Sequence[Trial] | None = None) -> list[Trial]:
    """Write a run that is over; the trials that are in it."""
    found = list(made_up_trials() if trials is None else trials)
    with locked_run(folder, SWEEP, resume=False) as run:
        store = TrialStore(run.path)
        for trial in found:
            store.append(trial, _items(trial))
        for split in ("validation", "test"):
            write_questions(run.path, split, [_question(domain, n) for domain in DOMAINS for n in range(ITEMS)])
        run.model_folder.mkdir(parents=True)
        run.log_file.write_text("what libraries said\n")
    return found


def _items(trial: Trial) -> list[dict[str, object]]:
    """Answers of which as many are right as the score says."""
    return [
        {
            **{key: value for key, value in _question(domain, number).items() if key not in ("prompt", "expected")},
            "answer": f"{trial.label} says {number}",
            "score": float((number + 1) / ITEMS <= result.score),
            "cluster": str(number),
        }
        for domain, result in trial.domains.items()
        for number in range(ITEMS)
    ]


def _question(domain: str, number: int) -> dict[str, str]:
    return {
        "domain": domain,
        "task": f"mini_{domain}",
        "item": str(number),
        "prompt_digest": f"{domain}-{number}",
        "prompt": f"Question {number} of {domain}?",
        "expected": str(number),
    }
