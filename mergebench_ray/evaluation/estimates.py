"""Estimates: what a metric came to over a task's items, and how far each cluster of items moved it.

Items that share a cluster (translations of one question, questions about one passage) are not independent: what they
are off the mean by is added up before it is squared, as cluster-robust errors do (Liang and Zeger, 1986; for language
models Miller, 2024, arXiv 2411.00640). Where every item is a cluster of its own this is the usual error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mergebench_ray.scores import Influences, bucket_of, combined_error, exact_sum, in_common


@dataclass(frozen=True)
class Estimate:
    """A metric over items.

    Attributes:
        value: what it came to.
        influences: how far each cluster moved it; None for a single cluster, whose error is not known.
    """

    value: float
    influences: Influences | None

    @property
    def standard_error(self) -> float:
        """By cluster; NaN for a single one."""
        return math.nan if self.influences is None else combined_error([self.influences])

    def turned(self) -> Estimate:
        """Of 1 - the metric."""
        turned = None if self.influences is None else {name: -one for name, one in self.influences.items()}
        return Estimate(1 - self.value, turned)


def estimate_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Mean over items; with clusters of one item each, its error is the sample deviation / sqrt(items).

    Args:
        values: of the items.
        clusters: which cluster each item belongs to.
    """
    count = len(values)
    mean = exact_sum(values) / count
    off: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        off[cluster].append(value - mean)
    if len(off) == 1:
        return Estimate(mean, None)
    scale = math.sqrt(len(off) / (len(off) - 1)) / count
    return Estimate(mean, {cluster: scale * exact_sum(some) for cluster, some in off.items()})


def estimate_aggregate(
    aggregate: Callable[[Sequence[Any]], float], values: Sequence[Any], clusters: Sequence[str], max_groups: int = 200
) -> Estimate:
    """Any aggregate over items, and its error from leaving out one group of clusters at a time.

    The delete-a-group jackknife (Efron, 1982; Kott, 2001): with at most `max_groups` clusters a group is a cluster. A
    corpus of thousands, whose BLEU takes a second each time, is aggregated no more than that often.

    Args:
        aggregate: of the values of some items.
        values: of all items.
        clusters: which cluster each item belongs to.
        max_groups: how often to aggregate, at most.

    Returns:
        the estimate; its error is NaN where the aggregate of some group's rest cannot be formed.
    """
    value = float(aggregate(values))
    groups = _groups(clusters, max_groups)
    names = list(dict.fromkeys(groups))
    if len(names) == 1:
        return Estimate(value, None)
    try:
        without = [
            float(aggregate([one for one, group in zip(values, groups, strict=True) if group != name]))
            for name in names
        ]
    except Exception:  # an aggregate may need more items, or two classes, and says so in its own way
        return Estimate(value, None)
    center = exact_sum(without) / len(without)
    scale = math.sqrt((len(names) - 1) / len(names))
    return Estimate(value, {name: scale * (center - rest) for name, rest in zip(names, without, strict=True)})


def influences_of_mean(estimates: Sequence[Estimate]) -> Influences | None:
    """Influences on the mean of several estimates; None where one has a single cluster."""
    return weighted_mean(estimates, [1] * len(estimates)).influences


def weighted_mean(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Mean of several estimates; its error is not known where that of one is not.

    Where an estimate knows its clusters only in buckets, so are those of the others.

    Args:
        estimates: at least one.
        weights: of the estimates, above 0.
    """
    whole = sum(weights)
    value = exact_sum(one.value * weight for one, weight in zip(estimates, weights, strict=True)) / whole
    known = [one.influences for one in estimates if one.influences is not None]
    if len(known) < len(estimates):
        return Estimate(value, None)
    total: dict[str, float] = defaultdict(float)
    for one, weight in zip(in_common(known), weights, strict=True):
        for cluster, influence in one.items():
            total[cluster] += influence * weight / whole
    return Estimate(value, dict(total))


def _groups(clusters: Sequence[str], max_groups: int) -> list[str]:
    """A group for each item: its cluster, or where there are too many a bucket of clusters."""
    if len(set(clusters)) <= max_groups:
        return list(clusters)
    # By name, not by place: another task may have some of the same clusters, in another order.
    return [bucket_of(cluster, max_groups) for cluster in clusters]
