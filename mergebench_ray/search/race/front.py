"""A race for the front of several objectives: stopped is what another candidate is probably better than in everything.

For each objective, two candidates are compared on the items that both have answered, with paired errors. A rival is
better in everything with the product of its chances to be better in each, as if errors of the objectives were
independent: those of objectives that share items mostly go together, and then the product is too small. Of several
rivals that may be better in everything, only the most dangerous counts. Both stop rather too little than too much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergebench_ray.search.objectives.goal import Constraint
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.board import Board
from mergebench_ray.search.race.bounds import LIKELY
from mergebench_ray.search.race.contrasts import Contrasts, Floats
from mergebench_ray.search.race.decision import Decision, Estimate
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.pool import LEAST_OF_A_TASK, Pool


class FrontPool(Pool):
    """A pool whose survivors are those that may be on the front, all of which are scored in full in the end.

    With constraints, a rival counts as far as it is likely to keep them, and so does the candidate itself; where no
    rival is likely to, the one that is least far from it counts.

    Args:
        items: of the split, in the race's order.
        objective: what models are ranked by where one number is needed; nothing is decided by it.
        several: what candidates are compared by.
        constraints: what members of the front have to keep.
        look: items between two looks.
        candidates: how many are expected; not needed.
        p: a candidate is stopped when its chance to be on the front is below.
        survivors: as `Pool`.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        several: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        look: int = 20,
        candidates: int | None = None,
        p: float = 0.12,
        survivors: int = 8,
    ) -> None:
        given: dict[str, Any] = {"look": look, "candidates": candidates, "p": p, "survivors": survivors}
        super().__init__(items, objective, constraints=constraints, **given)
        self._begin_with(LEAST_OF_A_TASK)
        self._several = {one.name: _Aim(one, Board(Contrasts(items, one))) for one in several}

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> list[Decision]:
        """As that of any race."""
        if self._state.get(candidate) not in ("stopped", "done"):
            for aim in self._several.values():
                aim.board.report(candidate, scores)
        return super().report(candidate, scores)

    def items_left(self) -> int:
        """As if all that wait were on the front."""
        waiting = len(self.in_state("paused", "running"))
        return max(super().items_left(), waiting * (self.items - self._level))

    def withdraw(self, candidate: int) -> list[Decision]:
        """As that of any race."""
        for aim in self._several.values():
            aim.board.forget(candidate)
        return super().withdraw(candidate)

    def estimates(self, candidate: int) -> dict[str, Estimate]:
        """All objectives of a candidate, by name."""
        return {name: self._estimated(aim.board, aim.sign, candidate) for name, aim in self._several.items()}

    def _value(self, candidate: int) -> Any:
        values = {name: aim.sign * aim.board.value(candidate) for name, aim in self._several.items()}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def _against(self, candidate: int, rivals: Sequence[int], count: int) -> tuple[float, dict[str, Any]]:
        """A candidate's chance to be on the front, from the first items, and what it was made from."""
        better = np.ones(len(rivals))
        for aim in self._several.values():
            better *= aim.board.chances_of(rivals, candidate, count)
        if self.bounds is None:
            most = int(better.argmax())
            return 1.0 - float(better[most]), {"rival": rivals[most], "compared": len(rivals)}
        keeps, keep = self.bounds.chance(candidate), np.array([self.bounds.chance(one) for one in rivals])
        likely = bool((keep >= LIKELY).any())
        better = better * keep if likely else self.bounds.missed.chances_of(rivals, candidate, count)
        most = int(better.argmax())
        left = 1.0 - float(better[most])
        why = {"rival": rivals[most], "compared": len(rivals), "keeps": keeps}
        return (keeps * left if likely else max(keeps, left)), why

    def _compare(self, candidate: int, others: Sequence[int]) -> tuple[float, dict[str, Any]]:
        return self._against(candidate, others, self.board.answered(candidate))

    def _compare_all(self, candidates: Sequence[int], count: int) -> list[tuple[float, dict[str, Any]]]:
        return [self._against(one, [other for other in candidates if other != one], count) for one in candidates]


class SparingFrontPool(FrontPool):
    """A pool for the front where items are dear: it looks twice as often and is content with less certainty.

    Args:
        items: of the split, in the race's order.
        objective: as `FrontPool`.
        several: as `FrontPool`.
        constraints: as `FrontPool`.
        look: items between two looks.
        candidates: how many are expected; not needed.
        p: as `FrontPool`.
        survivors: as `FrontPool`.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        several: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        look: int = 10,
        candidates: int | None = None,
        p: float = 0.2,
        survivors: int = 8,
    ) -> None:
        given: dict[str, Any] = {"look": look, "candidates": candidates, "p": p, "survivors": survivors}
        super().__init__(items, objective, several=several, constraints=constraints, **given)


class _Aim:
    """One objective and its board."""

    def __init__(self, objective: Objective, board: Board) -> None:
        self.board = board
        self.sign = 1.0 if objective.direction == "maximize" else -1.0
