"""Scores of one model on a suite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import EngineOptions, ModelRef, Suite
from mergebench_ray.config.sweep import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation import (
    Scores,
    Split,
    average_score,
    check_engines_fit,
    load_tasks,
    score_together,
    start_evaluator,
)
from mergebench_ray.evaluation.judges import digests, find_judges, running_judges
from mergebench_ray.evaluation.questions import QuestionRow, question_rows
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
        notes: what was scored otherwise than the suite says, a line each.
    """

    model: str
    digest: str
    suite: str
    scores: Scores
    notes: list[str] = field(default_factory=list)


def evaluate(
    model: str,
    *,
    suite: str,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    items: int | None = None,
    allow_code_execution: bool = False,
    data: Mapping[str, str] | None = None,
    judges: Mapping[str, str] | None = None,
    engines: int = 1,
    out: Path | str | None = None,
    address: str | None = None,
    show_progress: bool = False,
) -> EvaluationResult:
    """Score a model.

    Args:
        model: reference of the model.
        suite: built-in suite, or path of a suite file.
        split: "validation" or "test".
        tasks: only these tasks, or all tasks of these domains, or of "forgetting"; None for all domains.
        items: only the first items of each task; None for all.
        allow_code_execution: run generated programs in the sandbox.
        data: data set id of the hub (or `id:config`) -> local file or folder that is read instead.
        judges: judge -> reference of the model to use instead of the suite's.
        engines: vLLM engines that share the items.
        out: file for the scores as JSON; a row per item goes beside it as Parquet.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        show_progress: print what is happening.

    Raises:
        InputError: wrong input; nothing is started or written.
    """
    if split not in ("validation", "test"):
        raise InputError(f"split {split!r}: must be validation or test")
    if engines < 1:
        raise InputError(f"engines {engines}: must be at least 1")
    target = None if out is None else Path(out)
    if target is not None and target.exists():
        raise InputError(f"output {target} exists already: choose another --out or remove it")
    which: Split = "validation" if split == "validation" else "test"
    chosen = Suite.load(suite)
    if tasks is not None:
        chosen = chosen.only_tasks(list(tasks), which)
    options = EvaluationOptions(
        validation_items=items,
        test_items=items,
        allow_code_execution=allow_code_execution,
        data=dict(data or {}),
        judges={name: {"model": one} for name, one in (judges or {}).items()},
    )
    found, notes = find_judges(chosen, options, [which])
    loaded = load_tasks(chosen, which, options, judges=digests(found))
    check_ray(address)
    checkpoint = resolve(model)
    # Reads every byte, where it is not remembered: what is not finite is refused before an engine starts.
    digest = checkpoint.digest()
    base = resolve(ModelRef.parse(model).model)
    # On a GPU the engine leaves half of it to a judge.
    engine_options = EngineOptions(count=engines, num_gpus=0.5 if found else None)
    with (
        progress_line(show_progress) as report,
        ray_session(address),
        running_judges(found, engine_options) as running,
    ):
        check_engines_fit(engine_options)
        notes = [*checkpoint.notes, *notes]
        for note in notes:
            report(0.0, note)
        report(0.1, "starting vLLM, about half a minute")
        evaluators = [start_evaluator(chosen, base, engine_options, options, None, running) for _ in range(engines)]
        ray.get([evaluator.stats.remote() for evaluator in evaluators])
        if checkpoint.ref.adapter is not None:
            ray.get([evaluator.load_checkpoint.remote(checkpoint, base) for evaluator in evaluators])
        report(0.5, f"scoring {model} on {chosen.name}, {split} split")
        scores = score_together(evaluators, split)
        for evaluator in evaluators:
            ray.kill(evaluator)
    result = EvaluationResult(model, digest, chosen.name, scores, notes)
    if target is not None:
        _write(result, target, question_rows(loaded))
    return result


def _write(result: EvaluationResult, target: Path, questions: Iterable[QuestionRow]) -> None:
    scores = result.scores
    # Items come in the order of the tasks, as their questions do.
    rows = [{**question, **item} for question, item in zip(questions, scores.items, strict=True)]
    with whole_file(target.with_suffix(".items.parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    average, error = average_score(scores.domains)
    content = {
        "model": result.model,
        "digest": result.digest,
        "suite": result.suite,
        "split": scores.split,
        "domains": {name: asdict(score) for name, score in scores.domains.items()},
        "average": {"score": average, "standard_error": error},
        "tasks": {
            name: {**asdict(one), "score": one.score, "counted": one.label} for name, one in scores.tasks.items()
        },
        "seconds": scores.seconds,
        "engine_seconds": scores.engine_seconds,
        "tokens": scores.tokens,
        "truncated": scores.truncated,
        "judge_seconds": scores.judge_seconds,
        "judge_tokens": scores.judge_tokens,
        "notes": result.notes,
    }
    with whole_file(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
