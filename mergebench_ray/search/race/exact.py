"""Stops with a bound on the error of the whole race: the best candidate is stopped with a chance of at most alpha.

For each pair, a bet against "the candidate is at least as good as its rival" is laid on one item after another. Items
are drawn without replacement from the split, so that the stake of a true hypothesis grows with a chance that Ville's
inequality bounds, whenever one looks (Waudby-Smith and Ramdas, 2024, Estimating means of bounded random variables by
betting, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mergebench_ray.errors import InputError
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.contrasts import Floats
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Integers, Items
from mergebench_ray.search.race.order import shuffled_order
from mergebench_ray.search.race.race import Race

_LARGEST_SHARE = 0.75
"""Of what is at stake, put on one item."""

_REFUTED = 1000.0
"""The logarithm of a stake that nothing asks for."""


class Exact(Race):
    """A candidate goes on until the bets against it with one rival succeed.

    The bound holds for orders drawn with equal chances (`order`), item scores from 0 to 1, and objectives that are a
    weighted mean of the domains' scores.

    Args:
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        look: items between two looks.
        candidates: how many are expected. Each of them gets an equal part of half of `alpha`, those beyond share the
            other half, ever less; None: all do.
        alpha: chance to stop the best candidate, at most.

    Raises:
        InputError: the objective is no weighted mean of the domains' scores.
    """

    order: ClassVar[Callable[[Items, int], Integers]] = staticmethod(shuffled_order)

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        look: int = 20,
        candidates: int | None = None,
        alpha: float = 0.05,
    ) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self.alpha = alpha
        weights = self.board.contrasts.item_weights()
        if weights is None:
            raise InputError(
                f"race exact: objective {objective.name} is no weighted mean of the domains' scores, and only for "
                "those the error is bounded; choose race pool"
            )
        self._weights = weights
        self._bets: dict[int, dict[int, Bet]] = {}

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> list[Decision]:
        """As that of any race.

        Raises:
            InputError: a score is not from 0 to 1.
            ValueError: as any race.
        """
        found = np.asarray(scores, dtype=np.float64)
        outside = found[~((found >= 0) & (found <= 1))]
        if outside.size:
            raise InputError(
                f"race exact: an item scored {outside[0]:g}, and the error is bounded only for scores from 0 to 1; "
                "choose race pool"
            )
        return super().report(candidate, found)

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if answered == self.items:
            return [self._done(candidate)]
        bets = self._bets.setdefault(candidate, {})
        rivals = [one for one in self.board.with_at_least(answered) if one != candidate]
        for begun in {bets[one].items if one in bets else 0 for one in rivals}:
            group = [one for one in rivals if (bets[one].items if one in bets else 0) == begun]
            differences = self.board.scores([candidate], answered) - self.board.scores(group, answered)
            grown = grow([bets.get(one, Bet()) for one in group], differences[:, begun:], self._weights)
            bets.update(zip(group, grown))
        if not bets:
            return [self._go_on(candidate, self._next_look(answered))]
        needed = {one: -math.log(self._share(one)) for one in bets}
        rival = max(bets, key=lambda one: bets[one].most - needed[one])
        why = {"rival": rival, "log_bet": bets[rival].most, "log_needed": needed[rival]}
        if bets[rival].most >= needed[rival]:
            return [self._stop(candidate, **why)]
        return [self._go_on(candidate, self._next_look(answered), **why)]

    def _share(self, rival: int) -> float:
        """Of alpha, what bets with this rival may use; those of all rivals together do not exceed alpha."""
        place = self.board.place(rival)
        expected = self.candidates or 0
        if place < expected:
            return self.alpha / 2 / expected
        beyond = place - expected + 1
        return self.alpha * (0.5 if expected else 1.0) / (beyond * (beyond + 1))


@dataclass(frozen=True)
class Bet:
    """A bet against "the weighted mean difference over all items is at least 0", so far.

    Attributes:
        items: that it was laid on.
        total: of what spoke against the hypothesis on each.
        squares: of those, added up.
        stake: its logarithm; of 1 in the beginning.
        most: the largest that it was.
    """

    items: int = 0
    total: float = 0.0
    squares: float = 0.0
    stake: float = 0.0
    most: float = 0.0


def grow(bets: Sequence[Bet], differences: Floats, weights: Floats) -> list[Bet]:
    """Lay bets on further items.

    Args:
        bets: all laid on the same number of items so far.
        differences: of scores of the items that follow in an order drawn with equal chances, from -1 to 1, (bets, n).
        weights: of all items, (N,), so that their mean times the differences is the difference of objectives.

    Returns:
        the bets after those items.
    """
    begun, count = bets[0].items, differences.shape[1]
    laid = begun + np.arange(count)
    gains = -differences * weights[laid]
    bound = float(np.abs(weights).max())
    totals = np.array([[bet.total] for bet in bets]) + np.cumsum(gains, axis=1)
    squares = np.array([[bet.squares] for bet in bets]) + np.cumsum(gains**2, axis=1)
    before, squares_before = totals - gains, squares - gains**2
    # What the items that are left have as their mean, if the hypothesis only just holds.
    left = -before / (len(weights) - laid)
    mean = before / (laid + 1)
    variance = np.maximum((squares_before + bound**2 / 4) / (laid + 1) - mean**2, 1e-12)
    edge = mean - left
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(left > -bound, _LARGEST_SHARE / (left + bound), np.inf)
        growth = np.log1p(np.clip(edge / (variance + edge**2), 0.0, most) * (gains - left))
    # Where items would have to speak for the hypothesis more than they can, it is refuted.
    growth = np.where(left < -bound, _REFUTED, growth)
    stakes = np.array([[bet.stake] for bet in bets]) + np.cumsum(growth, axis=1)
    highest = np.maximum([bet.most for bet in bets], stakes.max(axis=1))
    ends = zip(totals[:, -1].tolist(), squares[:, -1].tolist(), stakes[:, -1].tolist(), highest.tolist())
    return [Bet(begun + count, *end) for end in ends]
