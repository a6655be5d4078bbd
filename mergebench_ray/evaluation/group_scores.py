"""The score of one of lm-eval's groups, from those of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mergebench_ray.evaluation.estimates import Estimate, estimate_mean, weighted_mean
from mergebench_ray.scores import TaskScore


class Part(NamedTuple):
    """A task that counts in a domain, by itself or as a part of a group.

    Attributes:
        score: its score.
        estimate: of what counts of it.
        averaged: what its metric is the mean of, and the cluster of each; None where it is no mean.
    """

    score: TaskScore
    estimate: Estimate
    averaged: tuple[list[float], list[str]] | None


def pooled(group: str, parts: Sequence[Part]) -> tuple[TaskScore, Estimate]:
    """The mean over a group's tasks by their numbers of items: of means over items, the mean over all of them.

    So is its error: rows of items have a group as one task, and whoever makes scores of them finds the same.

    Args:
        group: its name.
        parts: its tasks.
    """
    first, sizes = parts[0].score, [part.score.items for part in parts]
    counted = weighted_mean([part.estimate for part in parts], sizes)
    averages = [part.averaged for part in parts if part.averaged is not None]
    if len(averages) == len(parts):
        mean = estimate_mean(*([one for some in both for one in some] for both in zip(*averages, strict=True)))
        counted = mean.turned() if first.one_minus else mean
    whole = TaskScore(
        task=group,
        metric=first.metric,
        value=1 - counted.value if first.one_minus else counted.value,
        standard_error=counted.standard_error,
        items=sum(sizes),
        one_minus=first.one_minus,
        higher_is_better=first.higher_is_better,
        domain=first.domain,
    )
    return whole, counted
