"""Grading: from a model's answers to a value per item and a task's score, without any engine."""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from mergebench_ray.errors import InputError, one_line
from mergebench_ray.evaluation.estimates import Estimate, estimate_aggregate, estimate_mean
from mergebench_ray.tasks.scored_task import Item, ScoredTask
from mergebench_ray.tasks.task_files import Verdict

Answer = str | float | tuple[float, bool]
"""A generated text, the log-likelihood of a whole text, or that of a choice and whether greedy decoding gives it."""


class Absent(enum.Enum):
    """The value of an item that the metric leaves out: as in lm-eval, the others are aggregated without it."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


def grade(
    task: ScoredTask, answers: Sequence[Sequence[Sequence[Answer]]], verdicts: Sequence[Verdict | None] | None = None
) -> list[Any]:
    """Value of the task's metric for every item.

    Args:
        task: the task and its items.
        answers: by item, by instance (one, or one per choice), by repeat.
        verdicts: by item, of the task's judge; for tasks that have one.

    Returns:
        one value per item; numbers for most metrics, otherwise what the task's aggregation takes; `ABSENT` where the
        task's metrics leave it out.

    Raises:
        InputError: if the task's own functions fail, naming the task and, where it is known, the item.
    """
    documents, filtered = _filtered(task, answers)
    if task.judged is not None:
        assert verdicts is not None
        results = _results(task, "verdict_scorer", task.judged.scorer, documents, list(verdicts))
    elif task.batch_scorer is not None:
        results = _results(task, "batch_scorer", task.batch_scorer, documents, filtered)
    else:
        results = [
            _result(task, item, document, given)
            for item, document, given in zip(task.items, documents, filtered, strict=True)
        ]
    for item, result in zip(task.items, results, strict=True):
        if not isinstance(result, Mapping):
            raise InputError(
                f"task {task.name}: scoring item {item.id} gave {type(result).__name__}, not metric -> value; "
                "mend its process_results"
            )
    return [result.get(task.metric, ABSENT) for result in results]


def _result(task: ScoredTask, item: Item, document: dict[str, Any], given: list[Any]) -> Any:
    try:
        return task.task.process_results(document, given)
    except Exception as error:
        raise _failed(f"task {task.name}: scoring item {item.id}", error, "mend its process_results") from error


def _results(task: ScoredTask, key: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    try:
        results = list(function(*arguments))
    except InputError:
        raise
    except Exception as error:
        raise _failed(f"task {task.name}: its {key}", error, "mend it") from error
    if len(results) != len(task.items):
        raise InputError(
            f"task {task.name}: its {key} gave {len(results)} results for {len(task.items)} items; mend it"
        )
    return results


def _failed(what: str, error: Exception, remedy: str) -> InputError:
    return InputError(f"{what} failed ({one_line(error)}); {remedy}")


def graded_apart(task: ScoredTask) -> bool:
    """Whether a task is graded by a function that leaves the work to other processes, and by no judge."""
    return task.batch_scorer is not None and task.judged is None


def check_looks(tasks: Iterable[ScoredTask]) -> None:
    """Check that scores of some items say something of all.

    Raises:
        InputError: if a task's metric exists only over all of its items, naming it.
    """
    for task in tasks:
        if task.task.aggregation()[task.metric] is not mean:
            raise InputError(
                f"task {task.name}: its metric {task.metric} is no mean over items but exists only over all of them, "
                "so candidates cannot be raced; set search.race: none, or count another metric"
            )


def responses(task: ScoredTask, answers: Sequence[Sequence[Sequence[Answer]]]) -> list[str]:
    """The answer to each item as the task's filter leaves it: what a judge is shown."""
    return [str(given[0]) for given in _filtered(task, answers)[1]]


def _filtered(
    task: ScoredTask, answers: Sequence[Sequence[Sequence[Answer]]]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Documents and filtered answers by item.

    lm-eval's filters write into the instances they are given and metrics may change documents, so both are copies:
    nothing of one candidate reaches the next.
    """
    documents = [copy.deepcopy(item.doc) for item in task.items]
    instances = [
        [
            dataclasses.replace(instance, doc=document, resps=list(repeats), filtered_resps={})
            for instance, repeats in zip(item.instances, given, strict=True)
        ]
        for item, document, given in zip(task.items, documents, answers, strict=True)
    ]
    _apply_filter(task, [instance for group in instances for instance in group])
    return documents, [[instance.filtered_resps[task.filter_name] for instance in group] for group in instances]


def task_estimate(task: ScoredTask, values: Sequence[Any]) -> tuple[Estimate, int]:
    """What a task's metric comes to by its own aggregation, and over how many items.

    The error is analytic for a mean, otherwise by the jackknife; items of one cluster are not independent.

    Args:
        task: the task and its items.
        values: of its items, as `grade` gives them.

    Raises:
        InputError: if no item has the metric, or its aggregation fails or gives no number.
    """
    kept = [(value, item.cluster) for value, item in zip(values, task.items, strict=True) if value is not ABSENT]
    if not kept:
        raise InputError(f"task {task.name}: none of its items has the metric {task.metric}; count another metric")
    some, clusters = [value for value, _ in kept], [cluster for _, cluster in kept]
    aggregate = task.task.aggregation()[task.metric]
    try:
        if aggregate is mean:
            estimate = estimate_mean([float(value) for value in some], clusters)
        else:
            estimate = estimate_aggregate(lambda part: _aggregated(task, aggregate, part), some, clusters)
    except Exception as error:
        example = next(
            (item for item, value in zip(task.items, values, strict=True) if _item_value(value) is None), None
        )
        where = "" if example is None or aggregate is not mean else f" at item {example.id}"
        what = f"task {task.name}: the aggregation of its metric {task.metric}{where}"
        raise _failed(what, error, "count another metric, or mend the task file") from error
    return estimate, len(kept)


def _aggregated(task: ScoredTask, aggregate: Callable[[list[Any]], Any], values: Sequence[Any]) -> float:
    try:
        return float(aggregate(list(values)))
    except OverflowError:
        if task.higher_is_better:
            raise
        return math.inf  # the perplexity of a model that is broken


def averaged(task: ScoredTask, values: Sequence[Any]) -> tuple[list[float], list[str]] | None:
    """What a task's metric is the mean of, and the cluster of each; None where it is no mean.

    Args:
        task: the task and its items.
        values: of its items, as `grade` gives them.
    """
    if task.task.aggregation()[task.metric] is not mean:
        return None
    kept = [(float(value), item.cluster) for value, item in zip(values, task.items, strict=True) if value is not ABSENT]
    return [value for value, _ in kept], [cluster for _, cluster in kept]


def item_score(task: ScoredTask, value: Any) -> float | None:
    """What counts of an item, where the metric has a value of its own for it."""
    number = _item_value(value)
    return number if number is None or not task.one_minus else 1 - number


def _item_value(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else None
    except OverflowError:
        return None


def _apply_filter(task: ScoredTask, instances: list[Instance]) -> None:
    for ensemble in task.task._filters:
        if ensemble.name == task.filter_name:
            ensemble.apply(instances)
