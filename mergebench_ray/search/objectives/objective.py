"""What a search maximises or minimises, as a function of a candidate's domain scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mergebench_ray.scores import DomainScore

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class References:
    """What candidates are measured against, on one split.

    Attributes:
        specialists: score of each domain's specialist in its own domain.
        base: the base's scores.
    """

    specialists: Mapping[str, DomainScore]
    base: Mapping[str, DomainScore] = field(default_factory=dict)


class Objective(Protocol):
    """One number for a candidate.

    An objective is bound to what it measures against (the specialists' scores, the base's) when it is made, so that it
    needs nothing but the candidate's own scores. It is pickled, and changes nothing of itself: several threads use it.

    Attributes:
        name: what sweeps, tables and the study call it.
        direction: which way is better.
        references: domain -> the score that it measures against there; empty where it needs none.

    A class may have `has_kinks = True`: its slopes may change within what scores are uncertain by, as the worst
    domain's do where another one takes its place; its errors are then drawn instead of following from the slopes.
    """

    name: str
    direction: Direction
    references: Mapping[str, DomainScore]

    def value(self, scores: Mapping[str, float]) -> float | None:
        """The objective of a model with these domain scores; None where they cannot be normalised, or one is missing.

        Domains that it knows nothing of may be there, too.
        """
        ...

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative by each domain's score, at scores that have a value: what turns their errors into the objective's.

        Where the objective has a kink, such as the worst domain's, the slopes of the side that counts.
        """
        ...

    def reference_slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative by each of `references`, at scores that have a value."""
        ...
