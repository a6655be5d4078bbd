"""One order of a split's items, the same for all candidates of a run, that its seed fixes."""

from __future__ import annotations

import numpy as np

from mergebench_ray.search.race.items import Integers, Items


def stratified_order(items: Items, seed: int) -> Integers:
    """An order whose every prefix is balanced over tasks, and within each over strata.

    Systematic: the j-th of the m items of a group belongs at (j + u) / m of the whole, u drawn once for the group, so
    that of each prefix the group has its share, give or take one item. This is done twice: a task's strata are merged
    into one sequence, then the tasks' sequences into one order. Which item of a stratum is its j-th is drawn.

    Args:
        items: in the order in which the suite has them.
        seed: fixes the order; the same items and seed give the same order everywhere.

    Returns:
        places of the items, (items,): the order begins with item ``result[0]``.
    """
    random = np.random.default_rng(seed)
    places = random.permutation(len(items))  # so that ties are drawn, too
    places = places[np.argsort(_positions(items.strata[places], random), kind="stable")]
    return places[np.argsort(_positions(items.tasks[places], random), kind="stable")]


def shuffled_order(items: Items, seed: int) -> Integers:
    """An order drawn from all orders with equal chances, which exact tests need.

    Args and result as those of `stratified_order`.
    """
    return np.random.default_rng(seed).permutation(len(items))


def _positions(groups: Integers, random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Where in [0, 1] each item belongs, given the group of each."""
    kinds, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shifts = random.random(len(kinds))
    by_group = np.argsort(numbers, kind="stable")
    ranks = np.empty(len(groups))
    ranks[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return (ranks + shifts[numbers]) / sizes[numbers]
