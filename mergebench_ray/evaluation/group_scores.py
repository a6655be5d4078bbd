"""The score of one of lm-eval's groups, from those of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from mergebench_ray.evaluation.estimates import Estimate, weighted_mean
from mergebench_ray.scores import TaskScore


def pooled(group: str, parts: Sequence[tuple[TaskScore, Estimate]]) -> tuple[TaskScore, Estimate]:
    """The mean over a group's tasks by their numbers of items: of a mean over items, the mean over all of them.

    Args:
        group: its name.
        parts: scores of its tasks, and the estimates of what counts of them.
    """
    scores, estimates = zip(*parts, strict=True)
    first: TaskScore = scores[0]
    sizes = [score.items for score in scores]
    counted = weighted_mean(estimates, sizes)
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
