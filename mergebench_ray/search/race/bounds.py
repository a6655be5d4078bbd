"""How likely candidates of a race are to keep a search's constraints, from the items that they have answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mergebench_ray.scores import DomainScore
from mergebench_ray.search.objectives.goal import Constraint
from mergebench_ray.search.objectives.objective import Direction
from mergebench_ray.search.race.board import Board
from mergebench_ray.search.race.contrasts import Contrasts, Floats, chances_above, tempered
from mergebench_ray.search.race.items import Items

LIKELY = 0.5
"""Chance to keep all constraints from which on others are compared with a candidate by the objective."""


class Bounds:
    """The constraints of a search, and what its candidates have answered.

    Args:
        items: of the split, in the race's order.
        constraints: what a winner has to keep; at least one.

    Attributes:
        missed: board of the distance from keeping all of them, added up; 0 where they are kept.
    """

    def __init__(self, items: Items, constraints: Sequence[Constraint]) -> None:
        self._boards = {one.name: Board(Contrasts(items, _Distance([one]))) for one in constraints}
        self.missed = Board(Contrasts(items, _Distance(constraints, at_least_zero=True)))
        self._items = len(items)

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> None:
        """Take what a candidate scored on the first items of the order."""
        for board in (*self._boards.values(), self.missed):
            board.report(candidate, scores)

    def forget(self, candidate: int) -> None:
        """Compare nobody with a candidate any more."""
        for board in (*self._boards.values(), self.missed):
            board.forget(candidate)

    def chance(self, candidate: int) -> float:
        """A candidate's chance to keep all constraints on all items.

        It is that of the constraint that it is least likely to keep: which others it keeps, too, is not independent.
        """
        return min(self._chance(board, candidate) for board in self._boards.values())

    def distances(self, candidate: int) -> dict[str, float]:
        """How far a candidate probably is from keeping each constraint, over all items; 0 or less where it does."""
        return {name: -board.estimate(candidate)[0] for name, board in self._boards.items()}

    def chance_to_lead(self, board: Board, candidate: int, others: Sequence[int]) -> tuple[float, dict[str, Any]]:
        """A candidate's chance to come before the leader of others, which have answered at least its items.

        Args:
            board: of the objective.
            candidate: the candidate.
            others: with whom it is compared.

        Returns:
            the chance, and what it was made from.
        """
        keep = {one: self.chance(one) for one in (candidate, *others)}
        keeping = [one for one in others if keep[one] >= LIKELY]
        better, leader, compared = (board if keeping else self.missed).chance_to_lead(candidate, keeping or others)
        why = {"leader": leader, "compared": compared, "keeps": keep[candidate]}
        if keep[candidate] > max(keep[one] for one in others) and not self._is_kept(others):
            return 1.0, why
        return _chance_above(keep[candidate], better, keep[leader]) if keeping else max(keep[candidate], better), why

    def chances_to_lead(
        self, board: Board, candidates: Sequence[int], count: int
    ) -> list[tuple[float, dict[str, Any]]]:
        """The same of several that have all answered the first items; the leader's own chance is 1."""
        keep = {one: self.chance(one) for one in candidates}
        keeping = [one for one in candidates if keep[one] >= LIKELY]
        compared = board if keeping else self.missed
        _, leader = compared.chances_to_lead(keeping or candidates, count)
        not_stopped = [leader] if self._is_kept(candidates) else [leader, max(candidates, key=lambda one: keep[one])]
        found: list[tuple[float, dict[str, Any]]] = []
        for one, better in zip(candidates, compared.chances_of(candidates, leader, count).tolist()):
            chance = _chance_above(keep[one], better, keep[leader]) if keeping else max(keep[one], better)
            why = {"leader": leader, "compared": len(candidates), "keeps": keep[one]}
            found.append((1.0 if one in not_stopped else chance, why))
        return found

    def _is_kept(self, candidates: Sequence[int]) -> bool:
        """Whether one of them has answered everything and keeps all constraints."""
        return any(self.missed.answered(one) == self._items and self.chance(one) == 1.0 for one in candidates)

    def _chance(self, board: Board, candidate: int) -> float:
        answered = board.answered(candidate)
        if answered == self._items:
            return float(board.value(candidate) >= 0)
        everyone = board.with_at_least(answered)
        own = tempered(board.variances(everyone, answered), answered)[everyone.index(candidate)]
        value, error = board.estimate(candidate)
        # Answers that are all right, or all wrong, say too little of how they vary.
        squared = max(error**2, float(own) * board.contrasts.share_missing(answered))
        return 0.5 if squared == 0 else float(chances_above(np.array([value]), np.sqrt([squared]))[0])


def _chance_above(keeps: float, better: float, leader_keeps: float) -> float:
    """A candidate's chance to come before a leader, from its chances to keep the constraints and to be better.

    Where neither keeps them, either may be less far from it.
    """
    return keeps * (1 - leader_keeps * (1 - better)) + (1 - keeps) * (1 - leader_keeps) / 2


class _Distance:
    """How far a model is from keeping some constraints, added up, as an objective.

    Args:
        constraints: the constraints.
        at_least_zero: whether one that is kept by more does not make up for another.
    """

    name = "distance from the constraints"
    direction: Direction = "minimize"
    references: Mapping[str, DomainScore] = {}

    def __init__(self, constraints: Sequence[Constraint], *, at_least_zero: bool = False) -> None:
        self._constraints, self._least = constraints, 0.0 if at_least_zero else -math.inf

    def value(self, scores: Mapping[str, float]) -> float | None:
        total = sum(max(one.missed_by(scores), self._least) for one in self._constraints)
        return total if math.isfinite(total) else None

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for one in self._constraints:
            if one.missed_by(scores) > self._least:
                for domain, slope in one.slopes(scores).items():
                    found[domain] = found.get(domain, 0.0) + slope
        return found

    def reference_slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        return {}
