"""What a model scored, as it goes beside the model's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mergebench_ray.checkpoints.reproduction import RecordedAsking, RecordedEvaluation, RecordedScore
from mergebench_ray.runs.evaluation_file import EvaluationFile
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore

_ERRORS_APART = 2.0
"""Standard errors of a difference up to which two scores are the same."""


def evaluation_of_trial(
    trials: Sequence[Trial], own: Trial, suite: str, items: int | None, asked: Mapping[str, Any] = MappingProxyType({})
) -> RecordedEvaluation:
    """The scores of a search's winner, beside those of all models of its split.

    Args:
        trials: the run's.
        own: the winner's row.
        suite: name of the suite.
        items: first items of each task that were asked; None for all.
        asked: how, as `EvaluationOptions.asked` says.
    """
    rows = {trial.label: trial for trial in trials if trial.split == own.split}
    averages = {label: _score(row.normalised_average, row.normalised_standard_error) for label, row in rows.items()}
    return RecordedEvaluation(
        suite=suite,
        split=own.split,
        tasks=list(own.domains),
        items=items,
        asked=RecordedAsking(**asked),
        model=own.label,
        models={label: _domains(row.domains) for label, row in rows.items()},
        averages={label: one for label, one in averages.items() if one.score is not None},
        versions=dict(own.versions),
    )


def evaluation_of_file(file: EvaluationFile, versions: dict[str, str]) -> RecordedEvaluation:
    """The scores that `evaluate --out` wrote.

    Args:
        file: what it wrote.
        versions: of what is installed.
    """
    groups = {task.group for task in file.tasks.values()} - {""}
    return RecordedEvaluation(
        suite=file.suite,
        split=file.split,
        tasks=list(dict.fromkeys(task.group or name for name, task in file.tasks.items())),
        # Of a task with fewer items than others all are asked either way; those of a group are those of its tasks.
        items=None
        if file.asked.limit or file.asked.samples
        else max((task.items for task in file.tasks.values() if task.task not in groups), default=None),
        asked=file.asked,
        model="merge",
        models={"merge": _domains(file.domains)},
        versions=versions,
    )


def compared_scores(
    evaluation: RecordedEvaluation, again: Mapping[str, DomainScore]
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """A model's recorded scores beside those of asking it again.

    Returns:
        by domain both scores; and by domain, of those that are further apart than their errors explain, in what way.
    """
    both, apart = {}, {}
    for domain, one in evaluation.models[evaluation.model].items():
        if one.score is None:
            continue
        if domain not in again:
            apart[domain] = "is of a domain that the suite does not have"
            continue
        other = again[domain]
        both[domain] = (one.score, other.score)
        error = math.hypot(one.standard_error or 0.0, _finite(other.standard_error) or 0.0)
        if not abs(one.score - other.score) <= _ERRORS_APART * error:
            apart[domain] = (
                f"is {other.score:.4f} instead of {one.score:.4f}, more than {_ERRORS_APART:g} standard errors apart"
            )
    return both, apart


def _domains(domains: Mapping[str, DomainScore]) -> dict[str, RecordedScore]:
    return {
        name: _score(one.score, one.standard_error, items=one.items, metric=one.metric) for name, one in domains.items()
    }


def _score(score: float | None, error: float | None, items: int = 0, metric: str = "") -> RecordedScore:
    return RecordedScore(score=_finite(score), standard_error=_finite(error), items=items, metric=metric)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
