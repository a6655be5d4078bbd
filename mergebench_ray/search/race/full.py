"""No race: every candidate answers every item."""

from __future__ import annotations

from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.race import Race


class FullScoring(Race):
    """Goes on until all items are answered."""

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if answered < self.items:
            return [self._go_on(candidate, self._next_look(answered))]
        return [self._done(candidate)]
