"""Successive halving: all begin, the better half goes on to twice the items (Jamieson and Talwalkar, 2016)."""

from __future__ import annotations

import math

import numpy as np

from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.race import Race


class Halving(Race):
    """Every candidate waits at the first look until the last has come; then half are stopped at each doubling."""

    def items_left(self) -> int:
        """Each round asks as much as the first: half as many candidates answer twice as many items."""
        waiting, level = len(self._state), self.first_look
        rounds = math.log2(min(waiting, self.items / level)) if waiting > 1 else 0
        return super().items_left() + math.ceil(waiting * level / 2 * rounds)

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        first = self._done(candidate) if answered == self.items else self._pause(candidate)
        return [first, *self._settle()]

    def _settle(self) -> list[Decision]:
        waiting = self.in_state("paused")
        if not self.closed or self.in_state("running") or not waiting:
            return []
        level = self.board.answered(waiting[0])
        values = np.nan_to_num(self.board.values(waiting, level), nan=-np.inf)
        best_first = [waiting[place] for place in np.argsort(-values, kind="stable")]
        kept = best_first[: (len(waiting) + 1) // 2]
        until = self.items if len(kept) == 1 else min(self.items, 2 * level)
        why = {"compared": len(waiting), "kept": len(kept)}
        found = [self._stop(one, place=best_first.index(one) + 1, **why) for one in waiting if one not in kept]
        return [*found, *(self._go_on(one, until, place=best_first.index(one) + 1, **why) for one in kept)]
