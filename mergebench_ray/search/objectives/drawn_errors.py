"""Errors of objectives whose slopes do not hold as far as errors reach: by draws of what clusters of items moved.

A bootstrap to first order: each cluster's influence on the domain scores is multiplied by a normal number of its own,
the same for all domains and models. (Multiplier bootstrap: van der Vaart and Wellner, Weak Convergence, 2.9.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergebench_ray.scores import Influences, in_buckets, in_common
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import Objective

_DRAWS = 1000  # the error is then known to 4 %
_ONE_ERROR = (0.1587, 0.8413)  # what a normal number is within one standard deviation of its mean by
_MOST_CLUSTERS = 1000


def drawn_error(objective: Objective, models: Sequence[tuple[float, Measured]]) -> float:
    """Standard error of a sum of models' values by their own answers; the same for the same scores.

    Half the distance between which two thirds of the draws lie: a few far ones, where a score that is divided by comes
    near 0, say nothing of the others.

    Args:
        objective: whose values.
        models: what each is multiplied with, and what it scored. Its value is known.

    Returns:
        the error; NaN or infinite where that of a domain is which the objective depends on.
    """
    by_cluster = _influences(models)
    for (index, domain), one in list(by_cluster.items()):
        unknown = [error for error in one.values() if not math.isfinite(error)]
        if unknown:
            if objective.slopes(models[index][1].scores).get(domain):
                return math.nan if any(map(math.isnan, unknown)) else math.inf
            del by_cluster[index, domain]  # taken as it is: it is nothing to the objective, as far as is known
    entries = list(by_cluster)
    clusters = sorted({cluster for one in by_cluster.values() for cluster in one})
    moved = np.zeros((len(clusters), len(entries)))
    places = {cluster: place for place, cluster in enumerate(clusters)}
    for column, entry in enumerate(entries):
        for cluster, influence in by_cluster[entry].items():
            moved[places[cluster], column] = influence
    shifts = np.random.default_rng(0).standard_normal((_DRAWS, len(clusters))) @ moved
    sums = [_sum_of_values(objective, models, entries, row) for row in shifts.tolist()]
    low, high = np.quantile([one for one in sums if one is not None] or [math.nan], _ONE_ERROR)
    return float(high - low) / 2


def _influences(models: Sequence[tuple[float, Measured]]) -> dict[tuple[int, str], Influences]:
    """Index of a model, and domain -> influences, by clusters that are the same for all, in buckets if many."""
    entries = [(index, domain) for index, (_, one) in enumerate(models) for domain in one.domains]
    known = [(index, domain) for index, domain in entries if models[index][1].influences.get(domain)]
    shared: list[Influences] = in_common([models[index][1].influences[domain] for index, domain in known])
    if len({cluster for one in shared for cluster in one}) > _MOST_CLUSTERS:
        shared = [in_buckets(one) for one in shared]
    found: dict[tuple[int, str], Influences] = dict(zip(known, shared, strict=True))
    for index, domain in entries:
        alone = {f"all of {domain} of {index}": models[index][1].domains[domain].standard_error}
        found.setdefault((index, domain), alone)
    return found


def _sum_of_values(
    objective: Objective, models: Sequence[tuple[float, Measured]], entries: Sequence[tuple[int, str]], row: list[float]
) -> float | None:
    """The sum for one draw; None where a score has moved to where it cannot be normalised."""
    scores = [dict(one.scores) for _, one in models]
    for (index, domain), shift in zip(entries, row, strict=True):
        scores[index][domain] += shift
    total = 0.0
    for (factor, _), found in zip(models, scores, strict=True):
        value = objective.value(found)
        if value is None:
            return None
        total += factor * value
    return total
