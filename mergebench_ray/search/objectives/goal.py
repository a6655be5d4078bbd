"""What a sweep is after, whole: its objective, and the constraints that a winner has to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.constraints import Condition, parse_conditions
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.scores import ObjectiveValue
from mergebench_ray.search.objectives.errors import Measured, standard_error
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import check_objective, make_objective, objective_names


@dataclass(frozen=True)
class Constraint:
    """A bound on a domain or an objective.

    Attributes:
        objective: what is bounded: an objective, or a domain's share of its specialist's score.
        condition: the bound.
    """

    objective: Objective
    condition: Condition

    @property
    def name(self) -> str:
        """What tables call it, such as ``safety >= 0.9``."""
        return f"{self.objective.name} {self.condition}"

    def missed_by(self, scores: Mapping[str, float]) -> float:
        """How far a model with these domain scores is from keeping it; 0 or less where it does."""
        value = scores.get(self.objective.name) if self.condition.is_score else self.objective.value(scores)
        if value is None or math.isnan(value):
            return math.inf
        return self.condition.bound - value if self.condition.at_least else value - self.condition.bound


@dataclass(frozen=True)
class Goal:
    """Objective and constraints, bound to what they measure against on one split.

    Attributes:
        objective: what the search is after.
        constraints: what a winner has to keep.
    """

    objective: Objective
    constraints: Sequence[Constraint] = ()

    @classmethod
    def of(cls, options: SearchOptions, references: References) -> Goal:
        """Bind what a sweep, which was checked, says."""
        constraints = [
            Constraint(make_objective(subject, references), condition)
            for subject, text in options.constraints.items()
            for condition in parse_conditions(text)
        ]
        return cls(make_objective(options.objective, references), constraints)

    def values(self, measured: Measured) -> dict[str, ObjectiveValue]:
        """The objective's value for a model, by its name."""
        minimised = self.objective.direction == "minimize"
        value = self.objective.value(measured.scores)
        if value is None:
            return {self.objective.name: ObjectiveValue(None, minimised=minimised)}
        error = standard_error(self.objective, measured)
        return {self.objective.name: ObjectiveValue(value, error.total, error.of_references, minimised)}

    def missed_by(self, measured: Measured) -> dict[str, float]:
        """How far a model is from keeping each constraint; 0 or less where it does."""
        return {one.name: one.missed_by(measured.scores) for one in self.constraints}


def check_goal(options: SearchOptions, domains: Sequence[str]) -> None:
    """Check what a sweep is after against the domains that it scores.

    Raises:
        InputError: an objective or a constraint of something that is not known, or not scored.
    """
    check_objective(options.objective, domains, "search.objective")
    for subject in (options.objective, *options.constraints):
        if isinstance(subject, str) and subject in domains and subject in objective_names():
            raise InputError(
                f"search: {subject!r} is an objective and a domain that is scored, so it is not clear which is meant; "
                "give the domain another name"
            )
    for subject, text in options.constraints.items():
        if subject not in (*domains, *objective_names()):
            known = [*domains, *objective_names()]
            raise InputError(
                f"search.constraints: {subject!r:.80} is no domain that is scored, and no objective; "
                f"{nearest(subject, known)}"
            )
        if subject not in domains and any(one.is_score for one in parse_conditions(text)):
            raise InputError(
                f"search.constraints.{subject} = {text!r:.80}: an objective has no score; leave the word 'score' out"
            )
