"""What more candidates would bring: a guess from those that a search has tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

from mergebench_ray.runs.trials import Trial, is_known
from mergebench_ray.scores import exact_sum

NEXT = 10
"""Candidates that the guess is about."""
_FEWEST = 8


@dataclass(frozen=True)
class Outlook:
    """What `NEXT` further candidates would bring.

    Attributes:
        latest: by how much the last `NEXT` have improved the best; None where there were no more than those.
        gain: by how much as many more would improve it, on average.
        error: by how much one search and another would differ in that.
    """

    latest: float | None
    gain: float
    error: float

    def __str__(self) -> str:
        more = f"by about {self.gain:.3f} ± {self.error:.3f}"
        if self.latest is None:
            return f"{NEXT} more candidates like those tried would improve the best score of the search {more}."
        return (
            f"The last {NEXT} candidates improved the best score of the search by {self.latest:.3f}; {NEXT} more like "
            f"those tried would improve it {more}."
        )


def outlook(candidates: Sequence[Trial]) -> Outlook | None:
    """What more candidates like those tried would bring; None of too few, and of a front, which has no best.

    The best of a number of draws grows with its logarithm, more slowly where there is a bound. So further candidates
    are taken to improve it as much as those did that made of n · n / (n + NEXT) candidates n: on average over all
    orders in which the same n could have come. What a sampler has learnt is left out of account.

    Args:
        candidates: those that were tried, in the order of the search; stopped ones with what they would have come to.
    """
    keeping = [one for one in candidates if not one.missed] or list(candidates)
    sign = -1.0 if any(one.objective.minimised for one in keeping) else 1.0
    told = [one.objective.value if one.estimate is None else one.estimate.value for one in keeping]
    values = [sign * one for one in told if one is not None and is_known(one)]
    count = len(values)
    if count < _FEWEST or any(len(one.objectives) > 1 for one in candidates):
        return None
    best_first = sorted(values, reverse=True)
    gains = [best_first[0] - value for value in best_first]
    chances = _chances_to_be_best(count, round(count * count / (count + NEXT)))
    gain = exact_sum(chance * one for chance, one in zip(chances, gains))
    squared = exact_sum(chance * (one - gain) ** 2 for chance, one in zip(chances, gains))
    latest = best_first[0] - max(values[:-NEXT]) if count > NEXT else None
    return Outlook(latest, gain, sqrt(squared))


def _chances_to_be_best(count: int, drawn: int) -> list[float]:
    """Of each of some numbers, greatest first: how likely it is the greatest of so many drawn from them."""
    return [comb(count - 1 - place, drawn - 1) / comb(count, drawn) for place in range(count - drawn + 1)]
