"""Scores of items, tasks and domains, each with its error; what of a reference is reached; averages over domains.

A score is better when higher, unless its metric is better when lower and was not turned round (perplexity, say). What
of a reference is reached is always better when higher: score / reference, or reference / score where lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from mergebench_ray.errors import InputError

Influences = Mapping[str, float]
"""Cluster -> how far its items moved a score: the square root of the sum of squares is the score's standard error.

A cluster is what items share that are not independent. Two scores that share clusters are dependent by their products.
"""


@dataclass(frozen=True)
class DomainScore:
    """A domain's score.

    Attributes:
        score: mean over the domain's tasks of what counts in them.
        standard_error: by cluster of items; NaN where a task has a single one.
        items: number of items scored.
        higher_is_better: which way it counts.
        counted: task -> what was counted in it, such as ``1 - keyword_refusal``; empty in runs that did not keep it.
    """

    score: float
    standard_error: float
    items: int
    higher_is_better: bool = True
    counted: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What was counted, each name once; empty where that is not known."""
        return ", ".join(dict.fromkeys(self.counted.values()))


class ItemRow(TypedDict):
    """What is kept of an item, so that a score can be explained. A list of rows goes into `pyarrow.Table.from_pylist`.

    `answer` is the text that the model gave; where it gave several (repeats, or a log-likelihood per choice), they are
    a JSON list. `score` is what counts of it; None for metrics that exist only over all items (a corpus-wide BLEU, say)
    and for items that the metric leaves out. `judgement` is what a judge said of the answer, empty without one. Items
    with one `cluster` are not independent of each other.
    """

    domain: str
    task: str
    item: str
    cluster: str
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
        value: what it came to.
        standard_error: by cluster of items; NaN for a single one.
        items: number of items that have the metric.
        one_minus: whether 1 - value is what counts, for shares where lower is better.
        judge_errors: answers of the task's judge that did not parse; None without a judge.
        higher_is_better: whether what counts is better when higher.
        domain: the domain that it was scored for.
    """

    task: str
    metric: str
    value: float
    standard_error: float
    items: int
    one_minus: bool = False
    judge_errors: int | None = None
    higher_is_better: bool = True
    domain: str = ""

    @property
    def score(self) -> float:
        """What counts."""
        return 1 - self.value if self.one_minus else self.value

    @property
    def label(self) -> str:
        """What counts, in words."""
        return counted_label(self.metric, self.one_minus, self.higher_is_better)


def counted_label(metric: str, one_minus: bool, higher_is_better: bool) -> str:
    """What counts of a metric, in words."""
    if one_minus:
        return f"1 - {metric}"
    return metric if higher_is_better else f"{metric}, lower is better"


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
        tasks: score per task, with the metric that was counted; the names are those of `task_names`.
        influences: of each domain's clusters of items on its score; without those of domains whose error is not known.
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
    influences: dict[str, Influences] = field(default_factory=dict, repr=False)


def task_names(tasks: Sequence[TaskScore]) -> dict[str, TaskScore]:
    """The tasks by name; one that several domains have is there for each of them, as DOMAIN/TASK."""
    names = [task.task for task in tasks]
    return {f"{one.domain}/{one.task}" if names.count(one.task) > 1 else one.task: one for one in tasks}


def combine_tasks(tasks: Sequence[TaskScore], influences: Influences | None = None) -> DomainScore:
    """A domain from its tasks: the mean of what counts.

    Args:
        tasks: its tasks.
        influences: of clusters of items on that mean; without, the tasks' errors are combined as if independent.

    Raises:
        InputError: if lower is better in some of the tasks and higher in others.
    """
    check_directions(tasks[0].domain, {task.task: (task.label, task.higher_is_better) for task in tasks})
    count = len(tasks)
    if influences is None:
        error = math.hypot(*(task.standard_error for task in tasks)) / count
    else:
        error = combined_error([influences])
    return DomainScore(
        score=math.fsum(task.score for task in tasks) / count,
        standard_error=error,
        items=sum(task.items for task in tasks),
        higher_is_better=tasks[0].higher_is_better,
        counted={task.task: task.label for task in tasks},
    )


def check_directions(domain: str, tasks: Mapping[str, tuple[str, bool]]) -> None:
    """Refuse a domain whose tasks count in different directions, since their mean would say nothing.

    Args:
        domain: its name.
        tasks: task -> what counts in it, and whether that is better when higher.

    Raises:
        InputError: naming a task of each direction.
    """
    ways = {higher: f"{task} ({label})" for task, (label, higher) in tasks.items()}
    if len(ways) > 1:
        raise InputError(
            f"domain {domain!r}: higher is better for {ways[True]}, lower for {ways[False]}, so their mean says "
            "nothing; put them into domains of their own, or set one_minus: true for a metric from 0 to 1"
        )


def recovered(score: float, reference: float, higher_is_better: bool = True) -> float | None:
    """What of a reference's score is reached, 1.0 for all of it, always better when higher.

    None where that is no number that keeps the order of scores: a reference that is not positive and finite, a score
    that is not known, or, where lower is better, one that is not positive. A model so broken that a metric of this kind
    is infinite recovers nothing.
    """
    if not 0 < reference < math.inf:
        return None
    if higher_is_better:
        return score / reference if math.isfinite(score) else None
    return reference / score if score > 0 else None


def check_references(references: Mapping[str, DomainScore], whose: str = "specialist") -> None:
    """Refuse references that nothing can be measured against.

    Args:
        references: scores by domain.
        whose: they are, for the message.

    Raises:
        InputError: naming the domain and all scores.
    """
    for domain, reference in references.items():
        if not 0 < reference.score < math.inf:
            raise _not_normalised(f"its {whose} scores {reference.score:g}", domain, references, whose)


def normalised_average(
    scores: Mapping[str, DomainScore],
    references: Mapping[str, DomainScore],
    influences: Mapping[str, Influences] | None = None,
) -> tuple[float, float]:
    """What of each domain's specialist is recovered, averaged over the domains of `scores` (1.0: everything).

    Args:
        scores: scores of a model by domain.
        references: score of each domain's specialist in its own domain.
        influences: of the scores' clusters by domain; without, domains count as independent.

    Returns:
        the average and its standard error, as `_average_recovered` says.

    Raises:
        InputError: if a domain has no reference, or a score cannot be normalised; it names all scores.
    """
    missing = sorted(set(scores) - set(references))
    if missing:
        raise InputError(
            f"domain {missing[0]!r} has no specialist to normalise by; add one of that name, or leave the domain out"
        )
    return _average_recovered(scores, references, influences, "specialist")


def retained_average(
    scores: Mapping[str, DomainScore],
    base: Mapping[str, DomainScore],
    influences: Mapping[str, Influences] | None = None,
) -> tuple[float, float]:
    """What of the base's scores is kept, averaged over what should not be forgotten (1.0: nothing lost, above: gained).

    Args:
        scores: scores of a model on the suite's `forgetting` section.
        base: the base's scores there.
        influences: of the scores' clusters by domain; without, domains count as independent.

    Returns:
        the average and its standard error, as `_average_recovered` says.

    Raises:
        InputError: if the base was not scored on the same, or a score cannot be normalised.
    """
    missing = sorted(set(scores) - set(base))
    if missing:
        raise InputError(f"{missing[0]!r} was not scored for the base; score the base on the same tasks")
    return _average_recovered(scores, base, influences, "base")


def average_score(
    scores: Mapping[str, DomainScore], influences: Mapping[str, Influences] | None = None
) -> tuple[float, float]:
    """MergeBench's average: the mean of the domains' scores, and its standard error.

    NaN where lower is better in some domains and higher in others: their mean would say nothing.
    """
    if len({score.higher_is_better for score in scores.values()}) > 1:
        return math.nan, math.nan
    count = len(scores)
    average = math.fsum(result.score for result in scores.values()) / count
    return average, _error_of_sum(scores, dict.fromkeys(scores, 1 / count), influences)


def combined_error(influences: Iterable[Influences]) -> float:
    """Standard error of a sum of scores, from their influences; clusters that several share are added up first."""
    total: dict[str, float] = {}
    for one in influences:
        for cluster, influence in one.items():
            total[cluster] = total.get(cluster, 0.0) + influence
    return math.sqrt(math.fsum(influence**2 for influence in total.values()))


def _average_recovered(
    scores: Mapping[str, DomainScore],
    references: Mapping[str, DomainScore],
    influences: Mapping[str, Influences] | None,
    whose: str,
) -> tuple[float, float]:
    """Mean of what is recovered and its standard error.

    Both scores of a ratio carry an error, combined to first order as if independent; since both models answer the same
    items they mostly move together, so the true error is rather smaller.
    """
    check_references({domain: references[domain] for domain in scores}, whose)
    count = len(scores)
    ratios, by_score, by_reference = [], {}, []
    for domain, result in scores.items():
        reference = references[domain]
        ratio = recovered(result.score, reference.score, result.higher_is_better)
        if ratio is None:
            raise _not_normalised(f"the model scores {result.score:g}", domain, scores, "model")
        ratios.append(ratio)
        # d ratio / d score, and the relative error of the reference.
        by_score[domain] = (1 / reference.score if result.higher_is_better else -ratio / result.score) / count
        by_reference.append(ratio * reference.standard_error / reference.score / count)
    error = math.hypot(_error_of_sum(scores, by_score, influences), *by_reference)
    return math.fsum(ratios) / count, error


def _error_of_sum(
    scores: Mapping[str, DomainScore], factors: Mapping[str, float], influences: Mapping[str, Influences] | None
) -> float:
    """Standard error of Σ factor · score over domains: by cluster where that is known, else as if independent."""
    known = influences or {}
    return combined_error(
        {cluster: factors[domain] * influence for cluster, influence in known[domain].items()}
        if domain in known
        else {f"all of {domain}": factors[domain] * score.standard_error}
        for domain, score in scores.items()
    )


def _not_normalised(what: str, domain: str, scores: Mapping[str, DomainScore], whose: str) -> InputError:
    found = ", ".join(f"{name} {score.score:.4g}" for name, score in scores.items())
    turned = "" if scores[domain].higher_is_better else "set one_minus: true for a share that may be 0, "
    return InputError(
        f"domain {domain!r}: {what}, so nothing can be normalised there ({whose} scores: {found}); {turned}score more "
        f"items, count another metric, or leave the domain out"
    )
