"""Who wins: by the objective, of those that keep the constraints."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mergebench_ray.runs.leaderboard import best_candidate, leaderboard, objective_title
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, ObjectiveValue


def candidate(number: int, value: float | None, missed: float = -0.1, **more: Any) -> Trial:
    return Trial(
        *(more.pop("role", "candidate"), more.pop("name", "ties"), more.pop("split", "validation")),
        *(f"d{number}", "i", number),
        method="ties",
        domains={"math": DomainScore(0.5, 0.1, 4)},
        objectives={"math": ObjectiveValue(value, 0.1, 0.05, more.pop("minimised", False))},
        constraints={"safety >= 0.9": missed},
        **more,
    )


def test_the_winner_is_the_best_of_those_that_keep_the_constraints() -> None:
    trials = [candidate(0, 0.9, 0.2), candidate(1, 0.5), candidate(2, 0.7), candidate(3, 0.7), candidate(4, None)]
    best = best_candidate(trials)
    assert best is not None
    assert best.number == 2
    assert [row.trial.number for row in leaderboard(trials, "validation", 9)] == [2, 3, 1, 0, 4]
    assert [row.place for row in leaderboard(trials, "validation", 9)] == [1, 2, 3, 4, None]


def test_where_none_keeps_them_the_one_that_is_least_far_wins_and_the_report_says_so() -> None:
    trials = [candidate(0, 0.9, 0.2), candidate(1, 0.5, 0.1), candidate(2, 0.95, math.inf)]
    best = best_candidate(trials)
    assert best is not None
    assert best.number == 1
    assert best.missed == ["safety >= 0.9"]
    assert "No candidate keeps safety >= 0.9; this one is least far from it." in RunSummary.of(trials).finding()


def test_a_smaller_value_wins_where_the_objective_is_minimised() -> None:
    best = best_candidate([candidate(number, value, minimised=True) for number, value in enumerate((0.3, 0.1, 0.2))])
    assert best is not None
    assert best.number == 1


def test_rows_of_versions_that_knew_one_objective_are_read_back_with_it() -> None:
    row = Trial("candidate", "ties", "validation", "d", "i", normalised_average=0.5, normalised_standard_error=0.1)
    content = json.loads(row.to_json())
    del content["objectives"], content["constraints"]
    again = Trial.from_json(json.dumps(content))
    assert (again.objective_name, again.objective, again.missed) == (
        "normalised_average",
        ObjectiveValue(0.5, 0.1),
        [],
    )


def test_objectives_and_constraints_are_read_back_without_loss() -> None:
    row = candidate(0, 0.5, math.inf)
    assert Trial.from_json(row.to_json()) == row


def test_a_domains_share_is_not_mistaken_for_its_score() -> None:
    assert objective_title("math", ["math"]) == "share of math"
    assert objective_title("worst_domain", ["math"]) == "worst domain"


@pytest.mark.parametrize(("missed", "said"), [(-0.1, "keeps all constraints"), (0.2, "misses safety >= 0.9")])
def test_the_finding_says_what_was_searched_for_and_whether_the_winner_keeps_the_constraints(
    missed: float, said: str
) -> None:
    trials = [candidate(0, 0.9), candidate(0, 0.8, missed, split="test")]
    text = RunSummary.of(trials).finding()
    assert "on the test split its share of math is 0.800 ± 0.100" in text
    assert f"On test it {said}" in text


def test_the_winner_is_the_one_that_was_chosen_on_items_held_back() -> None:
    leads = {"plain average": (0.08, 0.03), "task arithmetic 0.4": (-0.01, 0.02)}
    trials = [
        candidate(0, 0.9),
        candidate(1, 0.8),
        candidate(0, 0.6, split="final", tied_with=("ties #1",)),
        candidate(1, 0.59, split="final", chosen=True, tied_with=("ties #0",), differences=leads),
        candidate(1, 0.58, split="test", differences=leads),
        candidate(0, 0.3, role="average", name="plain average", split="test"),
        candidate(0, 0.59, role="reference", name="task arithmetic 0.4", split="test"),
    ]
    best = best_candidate(trials)
    assert best is not None
    assert (best.number, best.split) == (1, "validation")
    text = RunSummary.of(trials).finding()
    assert "The best of 2 candidates is ties #1" in text
    assert "It is 0.080 ± 0.030 above plain average and 0.010 ± 0.020 below task arithmetic 0.4." in text
    assert "From task arithmetic 0.4 it cannot be told apart on these items." in text
    assert "On items held back from the search, share of math was 0.590 ± 0.100; no simpler" in text
    assert [Trial.from_json(trial.to_json()) for trial in trials] == trials


def test_a_run_that_ended_before_its_test_is_told_by_the_items_held_back() -> None:
    trials = [candidate(0, 0.9), candidate(0, 0.6, split="final", chosen=True)]
    assert RunSummary.of(trials).last_split == "final"
    assert "on the final split" in RunSummary.of(trials).finding()
