"""Scores: of an item, a task, a domain, and normalised over domains, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from mergebench_ray.errors import InputError


class ItemRow(TypedDict):
    """What is kept of an item, so that a score can be explained. A list of rows goes into `pyarrow.Table.from_pylist`.

    `answer` is the text that the model gave; where it gave several (repeats, or a log-likelihood per choice), they are
    a JSON list. `score` is None for metrics that exist only over all items (a corpus-wide BLEU, say).
    """

    domain: str
    task: str
    item: str
    prompt_digest: str
    answer: str
    score: float | None


@dataclass(frozen=True)
class DomainScore:
    """A domain's score, 0 to 1, higher is better.

    Attributes:
        score: mean over the domain's tasks.
        standard_error: by item, the tasks' errors combined; NaN where a task has a single item.
        items: number of items scored.
    """

    score: float
    standard_error: float
    items: int


@dataclass(frozen=True)
class Scores:
    """What one model scored on one split.

    Attributes:
        split: "validation" or "test".
        domains: score per domain.
        items: a row per item.
        version: weight version of the engine that answered (recipe digest, or the base's).
        seconds: wall time of scoring, grading included.
        engine_seconds: part of it in which the engine computed.
        tokens: tokens read and written by the engine.
        truncated: prompts that were cut from the left to fit the context.
    """

    split: str
    domains: dict[str, DomainScore]
    items: list[ItemRow] = field(repr=False)
    version: str
    seconds: float
    engine_seconds: float
    tokens: int
    truncated: int


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, sample deviation / sqrt(items); the error of a single item is NaN (not known)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def jackknife_error(aggregate: Callable[[Sequence[Any]], float], values: Sequence[Any]) -> float:
    """Standard error of any aggregate, from leaving out one item at a time (Efron, 1982); NaN for a single item."""
    count = len(values)
    if count == 1:
        return math.nan
    without = [float(aggregate([*values[:index], *values[index + 1 :]])) for index in range(count)]
    center = math.fsum(without) / count
    return math.sqrt((count - 1) / count * math.fsum((value - center) ** 2 for value in without))


def combine_tasks(tasks: Sequence[tuple[float, float, int]]) -> DomainScore:
    """A domain from its tasks' (score, standard error, items): mean of scores, independent errors combined."""
    count = len(tasks)
    return DomainScore(
        score=math.fsum(score for score, _, _ in tasks) / count,
        standard_error=math.sqrt(math.fsum(error**2 for _, error, _ in tasks)) / count,
        items=sum(items for _, _, items in tasks),
    )


def normalised_average(scores: Mapping[str, DomainScore], references: Mapping[str, DomainScore]) -> tuple[float, float]:
    """Score / specialist's score, averaged over the domains of `scores` (1.0: everything recovered).

    Both scores of a ratio carry an error, combined to first order as if independent; since both models answer the same
    items they mostly move together, so the true error is rather smaller. A domain in which its specialist scores 0
    cannot be normalised and is left out of the average.

    Args:
        scores: scores of a model by domain.
        references: score of each domain's specialist in its own domain.

    Returns:
        the average and its standard error.

    Raises:
        InputError: if a domain has no reference, or every specialist scores 0.
    """
    missing = sorted(set(scores) - set(references))
    if missing:
        raise InputError(
            f"domain {missing[0]!r} has no specialist to normalise by; add one of that name, or leave the domain out"
        )
    ratios: list[tuple[float, float]] = []
    for domain, result in scores.items():
        reference = references[domain]
        if reference.score == 0:
            continue
        ratio = result.score / reference.score
        error = math.hypot(result.standard_error, ratio * reference.standard_error) / reference.score
        ratios.append((ratio, error))
    if not ratios:
        raise InputError(
            "every specialist scores 0 in its own domain, so nothing can be normalised; "
            "score more items or check the specialists"
        )
    count = len(ratios)
    average = math.fsum(ratio for ratio, _ in ratios) / count
    return average, math.sqrt(math.fsum(error**2 for _, error in ratios)) / count
