"""A pool of survivors: a candidate waits until there are several to compare, and those are raised together.

Pausing costs half to a third of stopping against the best so far, since a candidate that waits is compared with more
others before any more is paid for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mergebench_ray.search.objectives.goal import Constraint
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.bounds import Bounds
from mergebench_ray.search.race.contrasts import Floats
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.race import Race

_SURE_FROM = 0.1
"""Share of the items from which on `p` counts in full."""
_RAISED_BY = 0.25
"""Of what survivors have answered, what they answer besides before they are compared again, in whole looks.

Each go costs a merge, a load, and the wait for its longest answer, however few items it has.
"""
LEAST_OF_A_TASK = 8
"""Items, of each task, before anything is stopped where one task alone may decide: a constraint, or one of several
objectives."""
_RAISED_TO_THE_END = 4
"""Of those that wait when the last candidate has come, as many as go far before they are stopped: rather more."""


class Pool(Race):
    """Survivors wait at one level; a newcomer goes up to it, look by look, and is stopped where it is clearly worse.

    Once `survivors` wait, all of them are raised by some looks, and those are stopped whose chance to beat the leader
    is below `p`; again and again, until fewer are left. After the last candidate has come, they are raised until one
    is left, which is scored in full.

    Less than `p` is asked for in two places: before a tenth of the items is answered, where going on is cheap, in
    proportion to the items; and after the last candidate has come, where a mistake costs most, half.

    With constraints, a candidate beats another that keeps them by keeping them, too, and being better: its chance is
    the product of both, and the leader is one that is likely to keep them. Where nobody is, whoever is less far from it
    is better. Until a candidate that is scored in full keeps them, whoever is most likely to is not stopped.

    Args:
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        constraints: what a winner has to keep.
        look: items between two looks.
        candidates: how many are expected; not needed.
        p: a candidate is stopped when its chance to beat the leader is below.
        survivors: how many wait before they are raised.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        constraints: Sequence[Constraint] = (),
        look: int = 20,
        candidates: int | None = None,
        p: float = 0.12,
        survivors: int = 8,
    ) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self.bounds = Bounds(items, constraints) if constraints else None
        self.p = p
        self.survivors = survivors
        self._level = self.first_look
        if constraints:
            self._begin_with(LEAST_OF_A_TASK)
        self._rising: set[int] = set()

    def _begin_with(self, each: int) -> None:
        """Look first when so many items of each task are answered."""
        first = self.board.contrasts.first_look(self.look, each=each)
        self.first_look = self._level = min(self.items, self.look * math.ceil(first / self.look))

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> list[Decision]:
        """As that of any race."""
        if self.bounds is not None and self._state.get(candidate) not in ("stopped", "done"):
            self.bounds.report(candidate, scores)
        return super().report(candidate, scores)

    def distances(self, candidate: int) -> dict[str, float]:
        """As that of any race."""
        return {} if self.bounds is None else self.bounds.distances(candidate)

    def threshold(self, count: int) -> float:
        """Chance to beat the leader below which a candidate is stopped after so many items."""
        seen = min(1.0, count / (_SURE_FROM * self.items))
        return self.p * seen / (2 if self.closed else 1)

    def items_left(self) -> int:
        """As if some of those that wait were raised to the end, and the others stopped at once."""
        waiting = min(_RAISED_TO_THE_END, len(self.in_state("paused", "running")))
        return max(super().items_left(), waiting * (self.items - self._level))

    def withdraw(self, candidate: int) -> list[Decision]:
        """As that of any race."""
        self._rising.discard(candidate)
        if self.bounds is not None:
            self.bounds.forget(candidate)
        return super().withdraw(candidate)

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if answered == self.items:
            first = self._done(candidate)
        elif candidate in self._rising:
            first = self._pause(candidate)
        else:
            first = self._newcomer(candidate, answered)
        self._rising.discard(candidate)
        return [first, *self._settle()]

    def _newcomer(self, candidate: int, answered: int) -> Decision:
        why: dict[str, Any] = {}
        alive = self.in_state("running", "paused", "done")
        others = [one for one in alive if one != candidate and self.board.answered(one) >= answered]
        if others:
            chance, compared = self._compare(candidate, others)
            threshold = self.threshold(answered)
            why = {"chance": chance, "threshold": threshold, **compared}
            if chance < threshold:
                return self._stop(candidate, **why)
        if answered < self._level:
            return self._go_on(candidate, self._next_look(answered), **why)
        return self._pause(candidate, **why)

    def _settle(self) -> list[Decision]:
        """Stop those of the waiting that are clearly worse, and raise the others, if it is time to."""
        waiting = self.in_state("paused")
        if self._rising or (self.closed and self.in_state("running")):
            return []
        if len(waiting) < (1 if self.closed else self.survivors):
            return []
        done = self.in_state("done")
        found = self._stopped([*waiting, *done])
        waiting = self.in_state("paused")
        if not self.closed and len(waiting) < self.survivors:
            return found
        last = self.closed and len(waiting) == 1 and not done
        looks = max(1, int(_RAISED_BY * self._level / self.look))
        self._level = self.items if last else min(self.items, self._level + looks * self.look)
        self._rising = set(waiting)
        return [*found, *(self._go_on(candidate, self._level) for candidate in waiting)]

    def _stopped(self, candidates: Sequence[int]) -> list[Decision]:
        if len(candidates) < 2:
            return []
        threshold = self.threshold(self._level)
        return [
            self._stop(candidate, chance=chance, threshold=threshold, **compared)
            for candidate, (chance, compared) in zip(candidates, self._compare_all(candidates, self._level))
            if self._state[candidate] == "paused" and chance < threshold
        ]

    def _compare(self, candidate: int, others: Sequence[int]) -> tuple[float, dict[str, Any]]:
        """A newcomer's chance to lead, and what it was made from."""
        if self.bounds is not None:
            return self.bounds.chance_to_lead(self.board, candidate, others)
        chance, leader, compared = self.board.chance_to_lead(candidate, others)
        return chance, {"leader": leader, "compared": compared}

    def _compare_all(self, candidates: Sequence[int], count: int) -> list[tuple[float, dict[str, Any]]]:
        """The same of several that have all answered so many items; the leader's own chance is 1."""
        if self.bounds is not None:
            return self.bounds.chances_to_lead(self.board, candidates, count)
        chances, leader = self.board.chances_to_lead(candidates, count)
        compared = {"leader": leader, "compared": len(candidates)}
        return [(1.0 if one == leader else float(chance), compared) for one, chance in zip(candidates, chances)]


class SparingPool(Pool):
    """A pool for where items are dear: it looks twice as often and is content with less certainty.

    Args:
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        constraints: as `Pool`.
        look: items between two looks.
        candidates: how many are expected; not needed.
        p: as `Pool`.
        survivors: as `Pool`.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        constraints: Sequence[Constraint] = (),
        look: int = 10,
        candidates: int | None = None,
        p: float = 0.2,
        survivors: int = 8,
    ) -> None:
        given: dict[str, Any] = {"look": look, "candidates": candidates, "p": p, "survivors": survivors}
        super().__init__(items, objective, constraints=constraints, **given)
