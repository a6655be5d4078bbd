"""What a sweep is after, whole: its objective, and the constraints that a winner has to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.constraints import Condition, parse_conditions
from mergebench_ray.config.objective import DEFAULT, ChoiceSpec, OneObjective, choice_values, each_objective
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.scores import ObjectiveValue
from mergebench_ray.search.objectives.errors import standard_error
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import (
    check_objective,
    make_objective,
    objective_name,
    objective_names,
)
from mergebench_ray.search.objectives.worst_domain import WorstDomain


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

    def slopes(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Derivative of that by each domain's score, at scores that have a value."""
        bounded = {self.objective.name: 1.0} if self.condition.is_score else self.objective.slopes(scores)
        return {domain: -slope if self.condition.at_least else slope for domain, slope in bounded.items()}


@dataclass(frozen=True)
class Goal:
    """Objectives and constraints, bound to what they measure against on one split.

    Attributes:
        objective: what models are ranked by: what the search is after or, where that is several, the normalised
            average.
        constraints: what a winner has to keep.
        several: what the search is after, where it is not one.
    """

    objective: Objective
    constraints: Sequence[Constraint] = ()
    several: Sequence[Objective] = ()

    @classmethod
    def of(cls, options: SearchOptions, references: References) -> Goal:
        """Bind what a sweep, which was checked, says."""
        constraints = [
            Constraint(make_objective(subject, references), condition)
            for subject, text in options.constraints.items()
            for condition in parse_conditions(text)
        ]
        found = [make_objective(one, references) for one in each_objective(options.objective)]
        if len(found) == 1:
            return cls(found[0], constraints)
        return cls(make_objective(DEFAULT, references), constraints, found)

    @property
    def objectives(self) -> Sequence[Objective]:
        """What the search is after, which may be one."""
        return self.several or (self.objective,)

    def values(self, measured: Measured) -> dict[str, ObjectiveValue]:
        """The objectives' values for a model, by their names."""
        return {one.name: _value(one, measured) for one in self.objectives}

    def missed_by(self, measured: Measured) -> dict[str, float]:
        """How far a model is from keeping each constraint; 0 or less where it does."""
        return {one.name: one.missed_by(measured.scores) for one in self.constraints}


def _value(objective: Objective, measured: Measured) -> ObjectiveValue:
    minimised = objective.direction == "minimize"
    value = objective.value(measured.scores)
    if value is None:
        return ObjectiveValue(None, minimised=minimised)
    error = standard_error(objective, measured)
    return ObjectiveValue(value, error.total, error.of_references, minimised)


def check_goal(options: SearchOptions, domains: Sequence[str]) -> None:
    """Check what a sweep is after against the domains that it scores.

    Raises:
        InputError: an objective or a constraint of something that is not known, or not scored; one objective twice; a
            choice that does not fit the objectives.
    """
    objectives = each_objective(options.objective)
    for one in objectives:
        check_objective(one, domains, "search.objective")
    for subject in (*objectives, *options.constraints):
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
    _check_different(objectives, domains)
    if options.choice is not None:
        _check_choice(options.choice, objectives, options.constraints)


def _check_different(objectives: Sequence[OneObjective], domains: Sequence[str]) -> None:
    """Refuse two objectives that are one number, between which there would be nothing, or that have one name."""
    seen: dict[Any, OneObjective] = {}
    for one in objectives:
        same = _meaning(one, domains)
        if same in seen:
            other = seen[same]
            what = f"{one!r:.60} twice" if one == other else f"{other!r:.60} and {one!r:.60}, which are the same"
            raise InputError(f"search.objective: the list names {what}; leave one out")
        if named := next((other for other in seen.values() if objective_name(other) == objective_name(one)), None):
            raise InputError(
                f"search.objective: {named!r:.80} and {one!r:.80} would have one name, {objective_name(one)!r:.60}, as "
                "weights are shown with six digits; leave one out, or give weights that differ in those"
            )
        seen[same] = one


def _meaning(objective: OneObjective, domains: Sequence[str]) -> Any:
    """What is equal for two objectives that are the same number."""
    if objective == DEFAULT or (objective == WorstDomain.name and len(domains) == 1):
        objective = dict.fromkeys(domains, 1.0)
    if isinstance(objective, str):
        if objective not in domains:
            return objective
        objective = {objective: 1.0}
    total = math.fsum(objective.values())
    return frozenset((domain, round(weight / total, 9)) for domain, weight in objective.items())


def _check_choice(choice: ChoiceSpec, objectives: Sequence[OneObjective], constraints: Mapping[str, str]) -> None:
    """Refuse a choice of what is not searched for, or that no model could meet."""
    names = [objective_name(one) for one in objectives]
    if len(names) == 1:
        raise InputError(
            "search.choice: it takes one model of a front, and there is one objective, whose best model wins; leave "
            "it out, or make search.objective a list of at least two"
        )
    kind = choice if isinstance(choice, str) else next(iter(choice))
    for name, value in choice_values(choice).items():
        if name not in names:
            raise InputError(
                f"search.choice.{kind}: {name!r:.80} is none of search.objective's; {nearest(name, names)}"
            )
        if kind == "floors" and name in constraints:
            try:
                parse_conditions(f"{constraints[name]} and >= {value}")
            except ValueError as error:
                raise InputError(
                    f"search.choice.floors.{name} = {value:g} against search.constraints: {error}"
                ) from error
