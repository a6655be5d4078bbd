"""Several objectives: which candidates are on the front, and which of them each choice takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mergebench_ray.runs.front import chosen_first, distances_to_ideal, non_dominated
from mergebench_ray.runs.leaderboard import best_candidate, best_of_each_method, by_choice, choice_title, front
from mergebench_ray.runs.leaderboard import with_objectives as in_words
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import ObjectiveValue

NAMES = ["math", "safety"]
VALUES = np.array([[0.9, 0.2], [0.7, 0.75], [0.3, 0.9], [0.6, 0.6], [0.9, 0.1]])
EXACT = np.zeros_like(VALUES)


def candidate(number: int, *values: float | None, choice: Any = "knee", **fields: Any) -> Trial:
    known = [value for value in values if value is not None]
    aims = {name: ObjectiveValue(value, 0.01, 0.0) for name, value in zip(NAMES, values)}
    average = {"normalised_average": sum(known) / len(known), "normalised_standard_error": 0.01}
    return Trial(
        *("candidate", "ties", "validation", f"d{number}", "i", number, "ties"),
        **{**average, "objectives": aims, "choice": choice, **fields},
    )


def naive_front(values: np.ndarray[Any, Any]) -> list[bool]:
    def dominates(one: Any, other: Any) -> bool:
        return all(a >= b for a, b in zip(one, other)) and any(a > b for a, b in zip(one, other))

    return [not any(dominates(other, one) for other in values) for one in values]


def test_the_front_is_what_nothing_is_better_than_in_everything() -> None:
    assert non_dominated(VALUES).tolist() == [True, True, True, False, False]
    random = np.random.default_rng(0)
    for objectives in (1, 2, 3, 5):
        values = random.integers(0, 4, (30, objectives)) / 4  # with ties
        assert non_dominated(values).tolist() == naive_front(values)


def test_equals_are_on_the_front_together() -> None:
    assert non_dominated(np.array([[1.0, 0.5], [1.0, 0.5], [1.0, 0.4]])).tolist() == [True, True, False]


def test_the_knee_is_nearest_to_the_best_of_everything() -> None:
    assert chosen_first("knee", NAMES, VALUES, EXACT)[0] == 1
    assert distances_to_ideal(VALUES[:3], EXACT[:3]).tolist() == pytest.approx([1.0, np.hypot(2 / 6, 15 / 70), 1.0])


def test_of_a_front_of_two_the_knee_is_the_one_with_more_in_all() -> None:
    assert chosen_first("knee", NAMES, VALUES[:2], EXACT[:2]) == [1, 0]


def test_a_range_that_chance_explains_counts_little_for_the_knee() -> None:
    values = np.array([[0.9, 0.500], [0.5, 0.504], [0.4, 0.505]])
    assert chosen_first("knee", NAMES, values, EXACT)[0] == 1
    assert chosen_first("knee", NAMES, values, np.full_like(values, 0.02))[0] == 0


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"weights": {"math": 1.0}}, 0),
        ({"weights": {"math": 1.0, "safety": 1.0}}, 1),
        ({"weights": {"math": 1.0, "safety": 9.0}}, 2),
        ({"floors": {"safety": 0.5}}, 1),
        ({"floors": {"safety": 0.8}}, 2),
        ({"floors": {"math": 0.5, "safety": 0.5}}, 1),
        ({"floors": {"safety": 0.95}}, 2),
    ],
)
def test_weights_and_floors_take_what_they_say(choice: Any, expected: int) -> None:
    assert chosen_first(choice, NAMES, VALUES, EXACT)[0] == expected


def test_the_winner_is_what_the_choice_takes_of_the_front() -> None:
    rows = [candidate(number, *row) for number, row in enumerate(VALUES)]
    assert [one.number for one in front(rows)] == [0, 1, 2]
    best = best_candidate(rows)
    assert best is not None
    assert best.number == 1
    weighted = [replace(one, choice={"weights": {"safety": 1.0}}) for one in rows]
    assert [one.number for one in by_choice(front(weighted))] == [2, 1, 0]
    assert [one.number for one in best_of_each_method(weighted)] == [2]


def test_what_was_chosen_on_items_held_back_wins() -> None:
    rows = [candidate(number, *row) for number, row in enumerate(VALUES)]
    best = best_candidate([*rows, replace(rows[2], split="final", chosen=True)])
    assert best is not None
    assert best.number == 2


def test_those_that_keep_all_constraints_come_first() -> None:
    rows = [candidate(number, *row, constraints={"safety >= 0.5": 0.5 - row[1]}) for number, row in enumerate(VALUES)]
    assert [one.number for one in front(rows)] == [1, 2]
    none = [candidate(number, *row, constraints={"safety >= 1": 1 - row[1]}) for number, row in enumerate(VALUES)]
    assert [one.number for one in front(none)] == [2], "the least far"


def test_a_candidate_without_one_of_the_values_and_a_repeated_one_are_not_on_the_front() -> None:
    rows = [candidate(0, 0.9, None), candidate(1, 0.5, 0.5), replace(candidate(1, 0.5, 0.5), number=2)]
    assert [one.number for one in front(rows)] == [1]
    assert front([candidate(0, None, 0.5)]) == []
    assert by_choice([]) == []


def test_lower_is_better_where_the_objective_is_minimised() -> None:
    aims = [{"math": ObjectiveValue(a, 0.01), "loss": ObjectiveValue(b, 0.01, minimised=True)} for a, b in VALUES]
    rows = [replace(candidate(number, 1.0), objectives=one) for number, one in enumerate(aims)]
    assert [one.number for one in front(rows)] == [4]


def test_a_floor_of_what_is_minimised_is_the_most_it_may_be() -> None:
    aims = [{"math": ObjectiveValue(a, 0.01), "loss": ObjectiveValue(1 - b, 0.01, minimised=True)} for a, b in VALUES]
    choice: Any = {"floors": {"loss": 0.3}}
    rows = [replace(candidate(number, 1.0, choice=choice), objectives=one) for number, one in enumerate(aims)]
    best = best_candidate(rows)
    assert best is not None
    assert best.number == 1


def test_of_one_objective_the_front_is_the_best_alone() -> None:
    rows = [replace(candidate(number, row[0]), objectives={}, choice=None) for number, row in enumerate(VALUES[1:4])]
    assert [one.number for one in by_choice(front(rows))] == [0]


def test_a_row_with_several_objectives_is_read_back_and_has_a_column_each() -> None:
    one = candidate(0, 0.5, 0.6, choice={"floors": {"safety": 0.5}})
    again = Trial.from_json(one.to_json())
    assert again == one
    assert (again.objective_name, again.objective.value) == ("normalised_average", pytest.approx(0.55))
    flat = one.flat()
    assert (flat["objective.math"], flat["objective.safety"], flat["objective_error.safety"]) == (0.5, 0.6, 0.01)


def test_words_say_what_was_searched_for_and_how_it_was_chosen() -> None:
    assert in_words(candidate(0, 0.5, 0.6)) == "math 0.500 ± 0.010, safety 0.600 ± 0.010"
    assert choice_title("knee") == "the knee"
    assert choice_title({"weights": {"math": 2.0}}) == "weights (math 2)"
    assert choice_title({"floors": {"safety": 0.9}}) == "floors (safety at least 0.9)"
    rows = [candidate(number, *row) for number, row in enumerate(VALUES)]
    finding = RunSummary.of(rows).finding()
    assert "It was chosen by the knee of a front of 3: on the validation split math 0.700 ± 0.010, safety" in finding


def test_a_winner_that_is_on_no_front_is_said_to_be_next_to_it() -> None:
    rows = [candidate(number, *row) for number, row in enumerate(VALUES)]
    fresh = replace(rows[3], split="final", chosen=True)
    assert (
        "It was chosen by the knee from next to a front of 3: on the final" in RunSummary.of([*rows, fresh]).finding()
    )


def test_a_candidate_whose_normalised_average_is_not_known_is_one_of_the_candidates() -> None:
    unknown = {"normalised_average": None, "normalised_standard_error": None}
    rows = [candidate(number, *row, **unknown) for number, row in enumerate(VALUES)]
    run = RunSummary.of(rows)
    assert [one.number for one in run.candidates] == [0, 1, 2, 3, 4]
    assert (
        "The best of 5 candidates is ties #1: on the validation split its normalised average is not known. It was"
        in (run.finding())
    )
