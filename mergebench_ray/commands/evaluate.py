"""Scores of one model on a suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import Domain, EngineOptions, ModelRef, Suite
from mergebench_ray.config.sweep import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation import Scores, load_tasks, start_evaluator
from mergebench_ray.files import whole_file
from mergebench_ray.runtime import check_ray, ray_session


@dataclass(frozen=True)
class EvaluationResult:
    """A model's scores.

    Attributes:
        model: its reference.
        digest: its content.
        suite: name of the suite.
        scores: per domain, with a row per item.
    """

    model: str
    digest: str
    suite: str
    scores: Scores


def evaluate(
    model: str,
    *,
    suite: str,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    items: int | None = None,
    allow_code_execution: bool = False,
    out: Path | str | None = None,
    address: str | None = None,
    show_progress: bool = False,
) -> EvaluationResult:
    """Score a model.

    Args:
        model: reference of the model.
        suite: built-in suite, or path of a suite file.
        split: "validation" or "test".
        tasks: only these tasks; None for all of the suite.
        items: only the first items of each task; None for all.
        allow_code_execution: run generated programs in the sandbox.
        out: file for the scores as JSON; a row per item goes beside it as Parquet.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        show_progress: print what is happening.

    Raises:
        InputError: wrong input; nothing is started or written.
    """
    if split not in ("validation", "test"):
        raise InputError(f"split {split!r}: must be validation or test")
    target = None if out is None else Path(out)
    if target is not None and target.exists():
        raise InputError(f"output {target} exists already: choose another --out or remove it")
    chosen = _only_tasks(Suite.load(suite), tasks)
    options = EvaluationOptions(validation_items=items, test_items=items, allow_code_execution=allow_code_execution)
    load_tasks(chosen, "validation" if split == "validation" else "test", options)
    check_ray(address)
    checkpoint = resolve(model)
    base = resolve(ModelRef.parse(model).model)
    with progress_line(show_progress) as report, ray_session(address):
        report(0.1, "starting vLLM, about half a minute")
        evaluator = start_evaluator(chosen, base, EngineOptions(), options, None)
        ray.get(evaluator.stats.remote())
        if checkpoint.ref.adapter is not None:
            ray.get(evaluator.load_checkpoint.remote(checkpoint, base))
        report(0.5, f"scoring {model} on {chosen.name}, {split} split")
        scores: Scores = ray.get(evaluator.score.remote(split))
        ray.kill(evaluator)
    result = EvaluationResult(model, checkpoint.digest(), chosen.name, scores)
    if target is not None:
        _write(result, target)
    return result


def _only_tasks(suite: Suite, tasks: Sequence[str] | None) -> Suite:
    """The suite with only some of its tasks."""
    if tasks is None:
        return suite
    known = {task for domain in suite.domains.values() for task in domain.tasks}
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise InputError(f"suite {suite.name} has no task {unknown[0]!r}; it has {', '.join(sorted(known))}")
    domains = {
        name: Domain(tasks=kept)
        for name, domain in suite.domains.items()
        if (kept := {task: metric for task, metric in domain.tasks.items() if task in tasks})
    }
    return suite.model_copy(update={"domains": domains})


def _write(result: EvaluationResult, target: Path) -> None:
    scores = result.scores
    with whole_file(target.with_suffix(".items.parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist([dict(item) for item in scores.items]), temporary)
    content = {
        "model": result.model,
        "digest": result.digest,
        "suite": result.suite,
        "split": scores.split,
        "domains": {name: asdict(score) for name, score in scores.domains.items()},
        "seconds": scores.seconds,
        "engine_seconds": scores.engine_seconds,
        "tokens": scores.tokens,
        "truncated": scores.truncated,
    }
    with whole_file(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
