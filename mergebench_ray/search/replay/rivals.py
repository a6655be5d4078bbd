"""What a race is compared with: fewer items for all, Tune's ASHA, and the rule of Optuna's Wilcoxon pruner."""

from __future__ import annotations

import math

import numpy as np

from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.contrasts import Floats
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.race import Race


class FewerItems(Race):
    """The same share of the items for every candidate.

    Args:
        items: see `Race`, as all others.
        objective: see `Race`.
        look: see `Race`.
        candidates: see `Race`.
        share: of the items, above 0 and up to 1.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        look: int = 20,
        candidates: int | None = None,
        share: float = 0.2,
    ) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self.first_look = max(1, round(share * len(items)))

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        return [self._done(candidate)]


class Asha(Race):
    """`AsyncHyperBandScheduler` of Ray Tune with one bracket (Li et al., 2020, arXiv 1810.05934).

    At 20, 40, 80, ... items a candidate is stopped if it is below the median of those that came as far before it.
    """

    def __init__(self, items: Items, objective: Objective, *, look: int = 20, candidates: int | None = None) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self._rungs: dict[int, list[float]] = {}

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if answered == self.items:
            return [self._done(candidate)]
        before = self._rungs.setdefault(answered, [])
        value = self.board.value(candidate)
        worse = bool(before) and value < np.nanpercentile(before, 50)
        before.append(value)
        return [self._stop(candidate) if worse else self._go_on(candidate, min(self.items, 2 * answered))]


class Wilcoxon(Race):
    """`WilcoxonPruner` of Optuna: stops what a signed-rank test finds worse than the best that was scored in full.

    Args:
        items: see `Race`, as all others.
        objective: see `Race`.
        look: see `Race`.
        candidates: see `Race`.
        p: threshold of the test.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        look: int = 20,
        candidates: int | None = None,
        p: float = 0.1,
    ) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self.p = p
        weights = self.board.contrasts.item_weights()
        self._weights = np.ones(len(items)) if weights is None else weights
        self._best: int | None = None

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if answered == self.items:
            if self._best is None or self.board.value(candidate) > self.board.value(self._best):
                self._best = candidate
            return [self._done(candidate)]
        if self._best is not None:
            own, best = self.board.scores([candidate, self._best], answered)
            differences = (own - best) * self._weights[:answered]
            if differences.mean() < 0 and signed_rank_p(differences) < self.p:
                return [self._stop(candidate)]
        return [self._go_on(candidate, self._next_look(answered))]


def signed_rank_p(differences: Floats) -> float:
    """One-sided p of Wilcoxon's signed-rank test for a median below 0: ties averaged, zeros split, normal.

    What ``scipy.stats.wilcoxon(differences, alternative="less", zero_method="zsplit", method="approx")`` gives.
    """
    _, numbers, ties = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[numbers]
    count = len(differences)
    above = ranks[differences > 0].sum() + ranks[differences == 0].sum() / 2
    variance = (count * (count + 1) * (2 * count + 1) - ((ties**3 - ties).sum()) / 2) / 24
    if variance <= 0:
        return 1.0
    return 0.5 * math.erfc((count * (count + 1) / 4 - above) / math.sqrt(2 * variance))
