"""Made-up answers of candidates, an objective that needs nothing, and the plainest way to drive a race."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mergebench_ray.search.objectives.objective import Direction
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.race import Race

DOMAINS = ("coding", "math", "safety")


class WeightedMean:
    """A weighted mean of domain scores."""

    def __init__(self, weights: Mapping[str, float], direction: Direction = "maximize") -> None:
        self.name = "weighted mean"
        self.direction: Direction = direction
        self.weights = dict(weights)

    def value(self, scores: Mapping[str, float]) -> float | None:
        return sum(self.weights[domain] * score for domain, score in scores.items())

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        return self.weights


class Worst:
    """The worst domain's score: a kink where two are alike."""

    name = "worst"
    direction: Direction = "maximize"

    def value(self, scores: Mapping[str, float]) -> float | None:
        return min(scores.values())

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        return {min(scores, key=lambda domain: scores[domain]): 1.0}


MEAN = WeightedMean(dict.fromkeys(DOMAINS, 1 / 3))


def made_up_items(per_domain: int = 40, seed: int = 0) -> Items:
    """Items of three domains, one task each, in strata of uneven size."""
    source = np.random.default_rng(seed)
    domains = np.repeat(DOMAINS, per_domain).tolist()
    return Items.of(domains, known=[int(one) for one in source.binomial(2, 0.3, len(domains))])


def made_up_answers(qualities: Any, items: Items, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """0 or 1, (candidates, items): hard items are hard for all, and better candidates solve more of them."""
    source = np.random.default_rng(seed)
    difficulty = source.normal(0, 1, len(items))
    noise = source.normal(0, 1, (len(qualities), len(items)))
    return (np.asarray(qualities)[:, None] > difficulty + 0.7 * noise).astype(float)


def run_race(race: Race, answers: np.ndarray[Any, np.dtype[np.float64]]) -> list[Decision]:
    """All candidates one after another; raised ones go first. Returns all decisions."""
    decided: list[Decision] = []
    waiting: list[tuple[int, int]] = []

    def take(found: list[Decision]) -> None:
        decided.extend(found)
        waiting.extend((one.candidate, one.until) for one in found if one.action == "go on")

    for number in range(len(answers)):
        take(race.report(number, answers[number, : race.first_look]))
        while waiting:
            candidate, until = waiting.pop(0)
            take(race.report(candidate, answers[candidate, :until]))
    take(race.close())
    while waiting:
        candidate, until = waiting.pop(0)
        take(race.report(candidate, answers[candidate, :until]))
    return decided
