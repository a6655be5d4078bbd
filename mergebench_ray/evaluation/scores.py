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
    a JSON list. `score` is None for metrics that exist only over all items (a corpus-wide BLEU, say). `judgement` is
    what a judge said of the answer, empty without one.
    """

    domain: str
    task: str
    item: str
    prompt_digest: str
    answer: str
    score: float | None
    judgement: str


@dataclass(frozen=True)
class TaskScore:
    """A task's score.

    Attributes:
        task: its name.
        metric: the metric that was measured.
        value: what it came to, 0 to 1.
        standard_error: by item; NaN for a single item.
        items: number of items scored.
        one_minus: whether 1 - value is what counts, for metrics where lower is better.
        judge_errors: answers of the task's judge that did not parse; None without a judge.
    """

    task: str
    metric: str
    value: float
    standard_error: float
    items: int
    one_minus: bool = False
    judge_errors: int | None = None

    @property
    def score(self) -> float:
        """What counts, 0 to 1, higher is better."""
        return 1 - self.value if self.one_minus else self.value

    @property
    def label(self) -> str:
        """What counts, in words."""
        return f"1 - {self.metric}" if self.one_minus else self.metric


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
        engine_seconds: in which engines computed, those of all engines that shared the items added up.
        tokens: tokens read and written by the engines.
        truncated: prompts that were cut from the left to fit the context.
        tasks: score per task, with the metric that was counted.
        judge_seconds: in which judges computed.
        judge_tokens: tokens read and written by judges.
    """

    split: str
    domains: dict[str, DomainScore]
    items: list[ItemRow] = field(repr=False)
    version: str
    seconds: float
    engine_seconds: float
    tokens: int
    truncated: int
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    judge_seconds: float = 0.0
    judge_tokens: int = 0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, sample deviation / sqrt(items); the error of a single item is NaN (not known)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def jackknife_error(aggregate: Callable[[Sequence[Any]], float], values: Sequence[Any], max_groups: int = 200) -> float:
    """Standard error of any aggregate, from leaving out one group of items at a time; NaN for a single item.

    The delete-a-group jackknife (Efron, 1982; Kott, 2001): with at most `max_groups` items a group is an item. A corpus
    of thousands, whose BLEU takes a second each time, is aggregated no more than that often.
    """
    if len(values) == 1:
        return math.nan
    count = min(len(values), max_groups)
    without = []
    for group in range(count):
        kept = [value for index, value in enumerate(values) if index % count != group]
        without.append(float(aggregate(kept)))
    center = math.fsum(without) / count
    return math.sqrt((count - 1) / count * math.fsum((value - center) ** 2 for value in without))


def combine_tasks(tasks: Sequence[TaskScore]) -> DomainScore:
    """A domain from its tasks: mean of what counts, errors combined as if independent."""
    count = len(tasks)
    return DomainScore(
        score=math.fsum(task.score for task in tasks) / count,
        standard_error=math.sqrt(math.fsum(task.standard_error**2 for task in tasks)) / count,
        items=sum(task.items for task in tasks),
    )


def average_score(scores: Mapping[str, DomainScore]) -> tuple[float, float]:
    """MergeBench's average: the mean of the domains' scores, and its standard error."""
    count = len(scores)
    average = math.fsum(result.score for result in scores.values()) / count
    return average, math.sqrt(math.fsum(result.standard_error**2 for result in scores.values())) / count


def normalised_average(scores: Mapping[str, DomainScore], references: Mapping[str, DomainScore]) -> tuple[float, float]:
    """Score / specialist's score, averaged over the domains of `scores` (1.0: everything recovered).

    Args:
        scores: scores of a model by domain.
        references: score of each domain's specialist in its own domain.

    Returns:
        the average and its standard error, as `_average_ratio` says.

    Raises:
        InputError: if a domain has no reference, or every specialist scores 0.
    """
    missing = sorted(set(scores) - set(references))
    if missing:
        raise InputError(
            f"domain {missing[0]!r} has no specialist to normalise by; add one of that name, or leave the domain out"
        )
    found = _average_ratio(scores, references)
    if found is None:
        raise InputError(
            "every specialist scores 0 in its own domain, so nothing can be normalised; "
            "score more items or check the specialists"
        )
    return found


def retained_average(scores: Mapping[str, DomainScore], base: Mapping[str, DomainScore]) -> tuple[float, float]:
    """Score / base's score, averaged over what should not be forgotten (1.0: nothing lost, above 1: something gained).

    Args:
        scores: scores of a model on the suite's `forgetting` section.
        base: the base's scores there.

    Returns:
        the average and its standard error, as `_average_ratio` says.

    Raises:
        InputError: if the base was not scored on the same, or scores 0 everywhere.
    """
    missing = sorted(set(scores) - set(base))
    if missing:
        raise InputError(f"{missing[0]!r} was not scored for the base; score the base on the same tasks")
    found = _average_ratio(scores, base)
    if found is None:
        raise InputError("the base scores 0 everywhere, so nothing can be forgotten; score more items")
    return found


def _average_ratio(
    scores: Mapping[str, DomainScore], references: Mapping[str, DomainScore]
) -> tuple[float, float] | None:
    """Mean of score / reference and its standard error; None where every reference is 0.

    Both scores of a ratio carry an error, combined to first order as if independent; since both models answer the same
    items they mostly move together, so the true error is rather smaller. A reference of 0 is left out of the average.
    """
    ratios: list[tuple[float, float]] = []
    for domain, result in scores.items():
        reference = references[domain]
        if reference.score == 0:
            continue
        ratio = result.score / reference.score
        error = math.hypot(result.standard_error, ratio * reference.standard_error) / reference.score
        ratios.append((ratio, error))
    if not ratios:
        return None
    count = len(ratios)
    average = math.fsum(ratio for ratio, _ in ratios) / count
    return average, math.sqrt(math.fsum(error**2 for _, error in ratios)) / count
