"""The items of a split as a race sees them: what counts together, what depends on each other, what is alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Items in one order, a number each for what they belong to.

    Attributes:
        domains: names of the domains.
        domain_of_task: of each task, its domain's place in `domains`; a domain's score is the mean over its tasks.
        tasks: of each item, its task.
        clusters: of each item, its cluster; items of one cluster are not independent.
        strata: of each item, its stratum within its task: items that are expected to be answered alike.
    """

    domains: tuple[str, ...]
    domain_of_task: Integers
    tasks: Integers
    clusters: Integers
    strata: Integers

    @classmethod
    def of(
        cls,
        domains: Sequence[str],
        tasks: Sequence[str] | None = None,
        clusters: Sequence[Hashable] | None = None,
        known: Sequence[Hashable] | None = None,
    ) -> Items:
        """Items from a value each.

        Args:
            domains: the domain.
            tasks: the task; None where each domain is one task.
            clusters: the cluster; None where every item is one of its own.
            known: what is known of the item before the first candidate, such as what specialist, average and base
                scored on it: equal values are one stratum of a task; None where nothing is.
        """
        pairs = list(zip(domains, domains if tasks is None else tasks, strict=True))
        names = tuple(dict.fromkeys(domains))
        task_pairs = list(dict.fromkeys(pairs))
        task_numbers = np.array([task_pairs.index(pair) for pair in task_pairs], dtype=np.int64)
        place = dict(zip(task_pairs, task_numbers))
        found = np.array([place[pair] for pair in pairs], dtype=np.int64)
        return cls(
            domains=names,
            domain_of_task=np.array([names.index(domain) for domain, _ in task_pairs], dtype=np.int64),
            tasks=found,
            clusters=np.arange(len(pairs)) if clusters is None else _numbered(clusters),
            strata=_numbered(list(zip(pairs, pairs if known is None else known, strict=True))),
        )

    def __len__(self) -> int:
        return len(self.tasks)

    def taken(self, places: Integers) -> Items:
        """Some of them, in another order; an item may be taken several times."""
        return Items(self.domains, self.domain_of_task, self.tasks[places], self.clusters[places], self.strata[places])


def levels(scores: Sequence[float | None]) -> list[int]:
    """What a reference scored on items, as a few values that strata can be made of: thirds of the range, from 0 to 2.

    Args:
        scores: of items of one task; None, which is a level of its own, where there is none.
    """
    known = [score for score in scores if score is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    width = (high - low) / 3 or 1.0
    return [-1 if score is None else min(2, int((score - low) / width)) for score in scores]


def _numbered(values: Sequence[Hashable]) -> Integers:
    """Equal values get equal numbers, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
