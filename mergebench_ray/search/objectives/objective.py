"""What a search maximises or minimises, as a function of a candidate's domain scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Direction = Literal["maximize", "minimize"]


class Objective(Protocol):
    """One number for a candidate.

    An objective is bound to what it measures against (the specialists' scores, the base's) when it is made, so that it
    needs nothing but the candidate's own scores.

    Attributes:
        name: what sweeps, tables and the study call it.
        direction: which way is better.
    """

    name: str
    direction: Direction

    def value(self, scores: Mapping[str, float]) -> float | None:
        """The objective of a model with these domain scores; None where they cannot be normalised."""
        ...

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative by each domain's score, at these scores: what turns errors of scores into the objective's.

        Where the objective has a kink, such as the worst domain's, the slopes of the side that counts.
        """
        ...
