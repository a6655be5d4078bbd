"""Scores of items, tasks and domains, each with its error; what of a reference is reached; averages over domains.

A score is better when higher, unless its metric is better when lower and was not turned round (perplexity, say). What
of a reference is reached is always better when higher: score / reference, or reference / score where lower is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from mergebench_ray.digests import hashed_number
from mergebench_ray.errors import InputError

Influences = Mapping[str, float]
"""Cluster -> how far its items moved a score: the square root of the sum of squares is the score's standard error.

A cluster is what items share that are not independent. Two scores that share clusters are dependent by their products.
"""
_BUCKET = "bucket "


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


@dataclass(frozen=True)
class ObjectiveValue:
    """What a search is after, of one model.

    Attributes:
        value: the objective's; None where it is not known.
        standard_error: its standard error; None where it is not known.
        reference_error: the part of it that comes from the references' scores, which all models share.
        minimised: whether lower is better.
    """

    value: float | None
    standard_error: float | None = None
    reference_error: float | None = None
    minimised: bool = False

    @property
    def own_error(self) -> float | None:
        """The part of the standard error that comes from the model's own answers."""
        if self.standard_error is None or self.reference_error is None:
            return self.standard_error
        both = self.standard_error + self.reference_error
        return math.sqrt(max(0.0, (self.standard_error - self.reference_error) * both))


@dataclass(frozen=True)
class ObjectiveEstimate:
    """What a model's objective would have come to, had it been asked everything: a guess, and no score.

    Attributes:
        value: the guess; None where nothing can be said.
        standard_error: of the guess, against the objective of all items; None where it is not known.
        answered: items that it was made from.
        items: that there are.
    """

    value: float | None
    standard_error: float | None
    answered: int
    items: int

    @property
    def own_error(self) -> float | None:
        """Its standard error as if all items were a draw, too: what a score of so few items has."""
        if self.standard_error is None or self.answered >= self.items:
            return self.standard_error
        return self.standard_error / math.sqrt(1 - self.answered / self.items)


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
        group: lm-eval's group or tag that the suite names in its place; empty where it names the task itself.
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
    group: str = ""

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
        tasks: score per task, with the metric that was counted; the names are those of `task_names`. A group's score is
            there, too, before those of its tasks.
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
        score=exact_sum(task.score for task in tasks) / count,
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


def slopes_of_recovered(
    share: float, score: float, reference: float, higher_is_better: bool = True
) -> tuple[float, float]:
    """Derivatives of what is recovered, `share`, by the score and by the reference."""
    if higher_is_better:
        return 1 / reference, -share / reference
    return -share / score, share / reference


def average_score(
    scores: Mapping[str, DomainScore], influences: Mapping[str, Influences] | None = None
) -> tuple[float, float]:
    """MergeBench's average: the mean of the domains' scores, and its standard error.

    NaN where lower is better in some domains and higher in others: their mean would say nothing.
    """
    if len({score.higher_is_better for score in scores.values()}) > 1:
        return math.nan, math.nan
    count = len(scores)
    average = exact_sum(result.score for result in scores.values()) / count
    return average, error_of_sum(scores, dict.fromkeys(scores, 1 / count), influences)


def in_common(several: Sequence[Influences]) -> list[Influences]:
    """The same influences by clusters that can be told apart in all of them: in buckets, where one is."""
    if not any(name.startswith(_BUCKET) for one in several for name in one):
        return list(several)
    return [in_buckets(one) for one in several]


def in_buckets(influences: Influences) -> Influences:
    """The same influences, of clusters in the same bucket added up."""
    total: dict[str, float] = defaultdict(float)
    for cluster, influence in influences.items():
        total[bucket_of(cluster)] += influence
    return dict(total)


def bucket_of(cluster: str, max_groups: int = 200) -> str:
    """The same bucket for a cluster in every task."""
    if cluster.startswith(_BUCKET):
        return cluster
    return f"{_BUCKET}{hashed_number(cluster, 8) % max_groups}"


def combined_error(influences: Iterable[Influences]) -> float:
    """Standard error of a sum of scores, from their influences; clusters that several share are added up first."""
    total: dict[str, float] = {}
    for one in influences:
        for cluster, influence in one.items():
            total[cluster] = total.get(cluster, 0.0) + influence
    if any(map(math.isnan, total.values())):
        return math.nan  # of which hypot knows nothing beside an infinity
    return math.hypot(*total.values())


def exact_sum(values: Iterable[float]) -> float:
    """Exactly rounded; where that is too large, or a value is infinite or not known, what floats add up to."""
    some = list(values)
    try:
        return math.fsum(some)
    except (OverflowError, ValueError):
        return sum(some)


def error_of_sum(
    scores: Mapping[str, DomainScore], factors: Mapping[str, float], influences: Mapping[str, Influences] | None
) -> float:
    """Standard error of Σ factor · score over the factors' domains: by cluster where known, else as if independent."""
    known = influences or {}
    return combined_error(
        {cluster: factor * influence for cluster, influence in known[domain].items()}
        if domain in known
        else {f"all of {domain}": factor * scores[domain].standard_error}
        for domain, factor in factors.items()
    )
