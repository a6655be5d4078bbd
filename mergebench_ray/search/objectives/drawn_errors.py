"""Errors of objectives whose slopes do not hold as far as errors reach: by draws of what clusters of items moved.

A bootstrap to first order: each cluster's influence on the domain scores is multiplied by a normal number of its own,
the same for all domains and models. (Multiplier bootstrap: van der Vaart and Wellner, Weak Convergence, 2.9.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergebench_ray.scores import Influences, in_common
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import Objective

_DRAWS = 1000  # the error is then known to 2 %


def drawn_error(objective: Objective, models: Sequence[tuple[float, Measured]]) -> float:
    """Standard error of a sum of models' values by their own answers; the same for the same scores.

    Args:
        objective: whose values.
        models: what each is multiplied with, and what it scored. Its value is known.
    """
    entries = [(index, domain) for index, (_, one) in enumerate(models) for domain in one.domains]
    known = [entry for entry in entries if entry[1] in models[entry[0]][1].influences]
    shared = in_common([models[index][1].influences[domain] for index, domain in known])
    by_cluster: dict[tuple[int, str], Influences] = dict(zip(known, shared, strict=True))
    for index, domain in entries:
        alone = {f"all of {domain} of {index}": models[index][1].domains[domain].standard_error}
        by_cluster.setdefault((index, domain), alone)
    clusters = sorted({cluster for one in by_cluster.values() for cluster in one})
    moved = np.array([[by_cluster[entry].get(cluster, 0.0) for entry in entries] for cluster in clusters])
    if not np.isfinite(moved).all():
        return math.nan if np.isnan(moved).any() else math.inf
    shifts = np.random.default_rng(0).standard_normal((_DRAWS, len(clusters))) @ moved
    sums = [_sum_of_values(objective, models, entries, row) for row in shifts.tolist()]
    return float(np.std([one for one in sums if one is not None] or [math.nan]))


def _sum_of_values(
    objective: Objective, models: Sequence[tuple[float, Measured]], entries: Sequence[tuple[int, str]], row: list[float]
) -> float | None:
    """The sum for one draw; None where a score has moved to where it cannot be normalised."""
    scores: list[dict[str, float]] = [{} for _ in models]
    for (index, domain), shift in zip(entries, row, strict=True):
        scores[index][domain] = models[index][1].domains[domain].score + shift
    total = 0.0
    for (factor, _), found in zip(models, scores, strict=True):
        value = objective.value(found)
        if value is None:
            return None
        total += factor * value
    return total
