"""What the items answered so far say of candidates' objectives and of the differences between them, with errors."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.items import Items

Floats = npt.NDArray[np.float64]

_PRIOR_ITEMS = 30.0
"""How many items' worth of weight the variance common to all candidates has beside a candidate's own."""


class Contrasts:
    """Objective of candidates from a prefix of the items, and how far each item moved it.

    Errors are linearised: the objective is followed by its slopes at a candidate's own domain scores. Everything here
    is turned so that more is better.

    Args:
        items: in the order of the race.
        objective: what candidates are compared by.
    """

    def __init__(self, items: Items, objective: Objective) -> None:
        self.items = items
        self._objective = objective
        self._sign = 1.0 if objective.direction == "maximize" else -1.0
        tasks = len(items.domain_of_task)
        self._member = np.zeros((len(items), tasks))
        self._member[np.arange(len(items)), items.tasks] = 1.0
        self._counts = np.cumsum(self._member, axis=0)
        # Mean over a domain's tasks.
        self._mean_of_tasks = np.zeros((tasks, len(items.domains)))
        self._mean_of_tasks[np.arange(tasks), items.domain_of_task] = 1.0
        self._mean_of_tasks /= self._mean_of_tasks.sum(axis=0)
        self._own_clusters = len(np.unique(items.clusters)) == len(items)

    def first_look(self, least: int, each: int = 2) -> int:
        """The smallest prefix of at least so many items in which every task has `each`, or all it has."""
        wanted = np.minimum(each, self._counts[-1])
        complete = np.argmax((self._counts >= wanted).all(axis=1)) + 1
        return min(len(self.items), max(least, int(complete)))

    def item_weights(self) -> Floats | None:
        """Weights by which the mean over all items is the objective, but for a constant; None where there are none.

        Returns:
            (items,).
        """
        found = []
        for score in (0.25, 0.5, 0.75):
            slopes = self._objective.slopes(dict.fromkeys(self.items.domains, score))
            found.append([slopes.get(domain, 0.0) for domain in self.items.domains])
        # A kink, such as the worst domain's, shows where the scores differ.
        for domain in self.items.domains:
            slopes = self._objective.slopes(dict.fromkeys(self.items.domains, 0.5) | {domain: 0.25})
            found.append([slopes.get(one, 0.0) for one in self.items.domains])
        if not np.allclose(found, found[0], rtol=1e-6):
            return None
        by_task = self._mean_of_tasks @ np.array(found[0]) * self._sign * len(self.items) / self._counts[-1]
        weights: Floats = by_task[self.items.tasks]
        return weights

    def values(self, scores: Floats) -> Floats:
        """Objectives of candidates on a prefix.

        Args:
            scores: of the first n items, (k, n).

        Returns:
            (k,), NaN where an objective cannot be formed.
        """
        found = [self._objective.value(self._named(row)) for row in self._task_means(scores) @ self._mean_of_tasks]
        return np.array([math.nan if value is None else self._sign * value for value in found])

    def contributions(self, scores: Floats) -> Floats:
        """What each item of a prefix contributes to a candidate's objective.

        Args:
            scores: of the first n items, (n,).

        Returns:
            (n,): their mean is 0 within each task, and their variance over n is that of the objective, for n items
            drawn anew; all 0 where the objective cannot be formed.
        """
        count = len(scores)
        means = self._task_means(scores[None])[0]
        by_domain = self._named(means @ self._mean_of_tasks)
        if self._objective.value(by_domain) is None:
            return np.zeros(count)
        found = self._objective.slopes(by_domain)
        slopes = np.array([found.get(domain, 0.0) for domain in self.items.domains])
        weights = (self._mean_of_tasks @ slopes) * self._sign * count / np.maximum(self._counts[count - 1], 1)
        tasks = self.items.tasks[:count]
        contributions: Floats = weights[tasks] * (scores - means[tasks])
        return contributions

    def _task_means(self, scores: Floats) -> Floats:
        count = scores.shape[1]
        means: Floats = (scores @ self._member[:count]) / np.maximum(self._counts[count - 1], 1)
        return means

    def _named(self, by_domain: Floats) -> dict[str, float]:
        return dict(zip(self.items.domains, by_domain.tolist()))

    def products(self, contributions: Floats) -> Floats:
        """Variance of an item's contribution and its products with others', by cluster of items.

        Args:
            contributions: of k candidates to the same prefix, (k, n).

        Returns:
            (k, k): times `share_missing`, the covariance of errors against the objective of all items.
        """
        sums = self._by_cluster(contributions)
        products: Floats = (sums @ sums.T) / self._degrees(contributions.shape[1])
        return products

    def variances(self, contributions: Floats) -> Floats:
        """The diagonal of `products`, (k,)."""
        sums = self._by_cluster(contributions)
        variances: Floats = np.einsum("ki,ki->k", sums, sums) / self._degrees(contributions.shape[1])
        return variances

    def share_missing(self, count: int) -> float:
        """1/n - 1/N: what the variance of an item is multiplied by to give that of a mean over n of N items."""
        return 1.0 / count - 1.0 / len(self.items)

    def _by_cluster(self, contributions: Floats) -> Floats:
        if self._own_clusters:
            return contributions
        _, numbers = np.unique(self.items.clusters[: contributions.shape[1]], return_inverse=True)
        sums = np.zeros((len(contributions), int(numbers.max()) + 1))
        np.add.at(sums.T, numbers, contributions.T)
        return sums

    def _degrees(self, count: int) -> int:
        """Items less the means that were taken off."""
        return max(1, count - int(np.count_nonzero(self._counts[count - 1])))


def tempered(variances: Floats, count: int) -> Floats:
    """Variances of several differences from n items, each drawn towards their mean: a prior of a few items' weight.

    Args:
        variances: of what is compared; those that are 0, a candidate's difference from itself, do not count.
        count: n.
    """
    known = variances[variances > 0]
    common = known.mean() if len(known) else 0.0
    return np.where(variances > 0, (_PRIOR_ITEMS * common + count * variances) / (_PRIOR_ITEMS + count), common)


def chances_above(differences: Floats, errors: Floats) -> Floats:
    """Chances that quantities, normal around `differences` with these standard errors, are above zero.

    1/2 where a difference is 0 or not known.
    """
    differences = np.nan_to_num(differences)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(differences == 0, 0.0, differences / errors)
    return np.array([0.5 * math.erfc(-ratio / math.sqrt(2.0)) for ratio in ratios])
