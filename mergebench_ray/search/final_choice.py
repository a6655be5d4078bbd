"""Which of the finalists wins: the simplest of those that nothing they answered tells from the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergebench_ray.methods import get_method, parse_parameters
from mergebench_ray.runs.front import non_dominated
from mergebench_ray.runs.leaderboard import aims_of, best_first, by_choice, missed_by, short_of_floors, values_of
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import ObjectiveValue, exact_sum
from mergebench_ray.search.objectives.errors import Difference, StandardError, difference
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.objectives.measured import Measured


@dataclass(frozen=True)
class Compared:
    """The finalists on one split.

    Attributes:
        goal: bound to the references' scores there.
        rows: theirs, the search's best first.
        measured: what each scored.
    """

    goal: Goal
    rows: Sequence[Trial]
    measured: Sequence[Measured]

    @property
    def items(self) -> int:
        """What its differences weigh: how many items they are of."""
        return sum(result.items for found in self.measured for result in found.domains.values())


@dataclass(frozen=True)
class FinalChoice:
    """Who was chosen.

    Attributes:
        chosen: the candidate's place among the finalists.
        tied: places of those that the items cannot tell from the best of them and that nothing else speaks against.
    """

    chosen: int
    tied: list[int]


def choose(splits: Sequence[Compared], on_front: Sequence[bool] | None = None) -> FinalChoice | None:
    """The simplest of the finalists that two paired errors do not tell from the best of them; None without any value.

    Values, constraints and differences are those of all splits together, each weighed by its items. On the items held
    back alone, a third of as many, a candidate that is clearly worse ties with the best just where it is lucky: it
    would win there, and its luck would be reported.

    Only those are compared that keep all constraints or, where none does, that are least far from it. Of those that are
    as simple, the search's best is taken. With several objectives the best is what the sweep's choice takes of their
    front, and what differs from it in any objective is told from it. Those that keep the choice's floors go before
    those that do not, then members of the search's front before those next to it, however simple.

    Args:
        splits: the finalists on the search's items and on those that were held back from it.
        on_front: which of them are members of the search's front; None where there is one objective.
    """
    count = len(splits[0].rows)
    known = [place for place in range(count) if all(_has_values(split, place) for split in splits)]
    if not known:
        return None
    rows = {place: _together(splits, place) for place in known}
    least = min(missed_by(row) for row in rows.values())
    running = [place for place in known if missed_by(rows[place]) == least]
    best = running[_best_of([rows[place] for place in running])]
    short = short_of_floors(rows[best])
    tied = [
        place
        for place in running
        if place == best or (short_of_floors(rows[place]) <= short and _are_alike(splits, best, place))
    ]
    if splits[0].goal.several and on_front is not None:
        tied = [place for place in tied if on_front[place]] or tied
    return FinalChoice(min(tied, key=lambda place: (complexity(rows[place]), place)), tied)


def complexity(trial: Trial) -> tuple[bool, int]:
    """What makes a candidate less simple than another: that its method sees data, and how many numbers it takes."""
    assert trial.method is not None
    parameters = parse_parameters(trial.method, dict(trial.parameters))
    sees_data = bool(get_method(trial.method).calibration_samples(parameters))
    return sees_data, sum(len(set(_numbers(value))) for value in trial.parameters.values())


def _has_values(split: Compared, place: int) -> bool:
    return all(one.value(split.measured[place].scores) is not None for one in split.goal.objectives)


def _weights(splits: Sequence[Compared]) -> list[float]:
    items = [split.items for split in splits]
    return [one / sum(items) for one in items]


def _together(splits: Sequence[Compared], place: int) -> Trial:
    """A finalist's row with the values, and what they miss, of all splits."""
    weights, rows = _weights(splits), [split.rows[place] for split in splits]
    aims = [aims_of(row) for row in rows]
    objectives = {name: _value(weights, [one[name] for one in aims]) for name in aims[-1]}
    constraints = {
        name: exact_sum(weight * row.constraints[name] for weight, row in zip(weights, rows, strict=True))
        for name in rows[-1].constraints
    }
    return replace(rows[-1], objectives=objectives, constraints=constraints)


def _value(weights: Sequence[float], values: Sequence[ObjectiveValue]) -> ObjectiveValue:
    """One value of several on different items, whose errors are independent."""
    pairs = list(zip(weights, values, strict=True))
    return ObjectiveValue(
        exact_sum(weight * (one.value or 0.0) for weight, one in pairs),
        math.hypot(*(weight * (one.standard_error or 0.0) for weight, one in pairs)),
        math.hypot(*(weight * (one.reference_error or 0.0) for weight, one in pairs)),
        values[0].minimised,
    )


def _are_alike(splits: Sequence[Compared], one: int, other: int) -> bool:
    """Whether two paired errors tell two finalists apart in no objective."""
    apart = [
        [difference(objective, split.measured[one], split.measured[other]) for objective in split.goal.objectives]
        for split in splits
    ]
    weights = _weights(splits)
    return all(_weighed(weights, found).is_within for found in zip(*apart, strict=True))


def _weighed(weights: Sequence[float], differences: Sequence[Difference]) -> Difference:
    """One difference of several on different items, whose errors are independent; of those whose error is known."""
    every = list(zip(weights, differences, strict=True))
    known = [(weight, one) for weight, one in every if not math.isnan(one.error.total)] or every
    total = exact_sum(weight for weight, _ in known)
    pairs = [(weight / total, one) for weight, one in known]
    error = StandardError(
        math.hypot(*(weight * one.error.own for weight, one in pairs)),
        math.hypot(*(weight * one.error.of_references for weight, one in pairs)),
    )
    return Difference(exact_sum(weight * one.value for weight, one in pairs), error)


def _best_of(rows: Sequence[Trial]) -> int:
    """Place of the best by its objective, or of what the choice takes of the front of several."""
    if rows[0].choice is None:
        return min(range(len(rows)), key=lambda place: best_first(rows[place]))
    on_front = [row for row, is_on in zip(rows, non_dominated(values_of(rows)).tolist()) if is_on]
    return rows.index(by_choice(on_front)[0])


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [number for part in value.values() for number in _numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value]
