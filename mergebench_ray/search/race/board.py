"""What has been answered so far, by candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergebench_ray.search.race.contrasts import Contrasts, Floats, chances_above, tempered

_GROUP, _LEAST_GROUP = 5, 3
"""How many candidates, at most and at least, tell whether the first items were easy."""


class Board:
    """Item scores of all candidates that have reported and were not forgotten, in the order of their first report.

    Args:
        contrasts: over the race's items.
    """

    def __init__(self, contrasts: Contrasts) -> None:
        self.contrasts = contrasts
        self._scores: dict[int, Floats] = {}
        self._came: list[int] = []
        self._values: dict[tuple[int, int], float] = {}
        self._contributions: dict[tuple[int, int], Floats] = {}

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> int:
        """Take what a candidate scored on the first items of the order.

        Returns:
            how many those are.

        Raises:
            ValueError: fewer items than it had, more than there are, or a score that is no number.
        """
        found = np.asarray(scores, dtype=np.float64)
        if not self.answered(candidate) < len(found) <= len(self.contrasts.items):
            raise ValueError(
                f"candidate {candidate}: {len(found)} items, after {self.answered(candidate)} of "
                f"{len(self.contrasts.items)}"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"candidate {candidate}: a score that is no number")
        if candidate not in self._came:
            self._came.append(candidate)
        self._scores[candidate] = found
        return len(found)

    def forget(self, candidate: int) -> None:
        """Compare nobody with a candidate any more."""
        self._scores.pop(candidate, None)

    def answered(self, candidate: int) -> int:
        """Items that a candidate has answered."""
        return len(self._scores.get(candidate, ()))

    def with_at_least(self, count: int) -> list[int]:
        """Candidates that have answered so many items."""
        return [candidate for candidate, scores in self._scores.items() if len(scores) >= count]

    def place(self, candidate: int) -> int:
        """Of a candidate's first report among all first reports, from 0; those of forgotten ones count."""
        return self._came.index(candidate)

    def scores(self, candidates: Sequence[int], count: int) -> Floats:
        """Scores of the first items, (candidates, count)."""
        return np.stack([self._scores[candidate][:count] for candidate in candidates])

    def value(self, candidate: int) -> float:
        """Objective from all that a candidate has answered, more being better; NaN where it cannot be formed."""
        return float(self.values([candidate], self.answered(candidate))[0])

    def values(self, candidates: Sequence[int], count: int) -> Floats:
        """Objectives from the first items, (candidates,)."""
        new = [one for one in candidates if (one, count) not in self._values]
        if new:
            found = self.contrasts.values(self.scores(new, count)).tolist()
            self._values.update(((one, count), value) for one, value in zip(new, found))
        return np.array([self._values[one, count] for one in candidates])

    def estimate(self, candidate: int) -> tuple[float, float]:
        """A candidate's objective over all items, as far as can be told, and the standard error of that.

        The first items may be easier or harder than all. How much is seen from those that have answered most: what they
        lost or gained since. They were chosen for doing well on those very items, though, and would have fallen back
        anyway; that part, which the spread of all candidates there tells, is not counted.
        """
        answered = self.answered(candidate)
        value = self.value(candidate)
        own = self.contrasts.variances(self._contributed([candidate], answered))[0]
        plain = value, math.sqrt(own * self.contrasts.share_missing(answered))
        further = [one for one in self.with_at_least(answered + 1) if one != candidate]
        group = sorted(further, key=self.answered, reverse=True)[:_GROUP]
        if len(group) < _LEAST_GROUP:
            return plain
        everyone = self.with_at_least(answered)
        then, there = self.values(everyone, answered), self.values(group, answered)
        level = min(map(self.answered, group))
        now = self.values(group, level)
        if not np.isfinite([*then, *now]).all():
            return plain
        contributed = self._contributed(everyone, answered)
        off = self.contrasts.variances(contributed - contributed.mean(axis=0)) * self.contrasts.share_missing(answered)
        spread = max(0.0, float(then.var(ddof=1) - off.mean()))
        kept = spread / (spread + off.mean()) if spread > 0 else 0.0
        expected = then.mean() + kept * (there.mean() - then.mean())
        common = self._contributed(group, level).mean(axis=0)
        still_open = self.contrasts.variances(common[None])[0] * self.contrasts.share_missing(level)
        squared = off[everyone.index(candidate)] + off.mean() / len(group) + still_open
        return value - float(expected) + float(now.mean()), math.sqrt(squared)

    def variances(self, candidates: Sequence[int], count: int) -> Floats:
        """Variance of an item's contribution to each candidate's objective, from the first items, (candidates,)."""
        return self.contrasts.variances(self._contributed(candidates, count))

    def chances_to_lead(self, candidates: Sequence[int], count: int) -> tuple[Floats, int]:
        """Compare candidates that have all answered the first items, on those.

        Returns:
            each one's chance to be better on all items than the one that leads on these, (candidates,): 1/2 for itself
            and for those that cannot be compared; the leader.
        """
        values = self.values(candidates, count)
        lead = _best(values)
        differences = self._contributed(candidates, count)
        variances = tempered(self.contrasts.variances(differences - differences[lead]), count)
        errors = np.sqrt(variances * self.contrasts.share_missing(count))
        return chances_above(values - values[lead], errors), candidates[lead]

    def chance_to_lead(self, candidate: int, others: Sequence[int]) -> tuple[float, int, int]:
        """Compare a candidate with others, all of which have answered at least its items.

        What is compared is how far it and the leader are from the mean of those that have answered most, each on the
        items that it has answered: the leader's distance is then known from more items than the candidate's.

        Returns:
            its chance to be better on all items than the leader; the leader; how many it was compared with.
        """
        count = self.answered(candidate)
        most = max(map(self.answered, others))
        group = [one for one in others if self.answered(one) == most]
        values = self.values(group, most)
        lead = _best(values)
        difference = self.value(candidate) - self.values(group, count).mean() - (values[lead] - values.mean())
        contributions = self._contributed([candidate, *group], count)
        off = contributions - contributions[1:].mean(axis=0)
        pair = self.contrasts.products(off[[0, 1 + lead]])
        variance, of_leader = tempered(self.contrasts.variances(off), count)[[0, 1 + lead]]
        if len(group) == 1:  # it is itself what both are compared with
            of_leader = 0.0
        now, later = self.contrasts.share_missing(count), self.contrasts.share_missing(most)
        # The leader's error is that of more items; the first of them are common to both.
        squared = now * variance + later * (of_leader - 2 * pair[0, 1])
        chance = chances_above(np.array([difference]), np.sqrt(np.maximum([squared], 0.0)))[0]
        return float(chance), group[lead], len(group)

    def chances_of(self, rivals: Sequence[int], candidate: int, count: int) -> Floats:
        """Compare a candidate with each of its rivals by itself, all of which have answered the first items, on those.

        Returns:
            each rival's chance to be better than the candidate on all items, (rivals,): 1/2 where that is not known.
        """
        values = self.values([candidate, *rivals], count)
        contributed = self._contributed([candidate, *rivals], count)
        variances = tempered(self.contrasts.variances(contributed[1:] - contributed[0]), count)
        return chances_above(values[1:] - values[0], np.sqrt(variances * self.contrasts.share_missing(count)))

    def _contributed(self, candidates: Sequence[int], count: int) -> Floats:
        for one in candidates:
            if (one, count) not in self._contributions:
                self._contributions[one, count] = self.contrasts.contributions(self._scores[one][:count])
        return np.stack([self._contributions[one, count] for one in candidates])


def _best(values: Floats) -> int:
    """Place of the greatest that is known; the first, where none is."""
    return int(np.where(np.isnan(values), -np.inf, values).argmax())
