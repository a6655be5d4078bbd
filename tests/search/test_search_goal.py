"""Constraints of a search, and what is refused of them before anything starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.constraints import Condition, parse_conditions
from mergebench_ray.errors import InputError
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.checks import read_sweep
from mergebench_ray.search.objectives.goal import Goal, check_goal
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.study import RunStudy, open_storage
from refused_sweeps import refused_search

SWEEP = Path(__file__).parents[2] / "sweeps" / "all-methods.yaml"
REFERENCES = References({"math": DomainScore(0.5, 0.02, 64), "safety": DomainScore(0.8, 0.02, 64)})


def scored(math_score: float, safety: float) -> Measured:
    return Measured({"math": DomainScore(math_score, 0.03, 64), "safety": DomainScore(safety, 0.03, 64)})


def goal(**options: Any) -> Goal:
    return Goal.of(SearchOptions.model_validate(options), REFERENCES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">= 0.9", [Condition(False, True, 0.9)]),
        ("score<=12", [Condition(True, False, 12.0)]),
        ("  >=.5  and  score >= 1e-1 ", [Condition(False, True, 0.5), Condition(True, True, 0.1)]),
    ],
)
def test_conditions_are_read_as_they_are_written(text: str, expected: list[Condition]) -> None:
    assert parse_conditions(text) == expected


def test_a_condition_prints_as_it_is_read() -> None:
    for text in (">= 0.9", "score <= 12"):
        assert str(Condition.parse(text)) == text


def test_a_share_is_of_the_specialists_score_and_a_score_is_itself() -> None:
    found = goal(constraints={"safety": ">= 0.9 and score >= 0.75"}).missed_by(scored(0.4, 0.7))
    assert found == {
        "safety >= 0.9": pytest.approx(0.9 - 0.7 / 0.8),
        "safety score >= 0.75": pytest.approx(0.05),
    }


def test_a_constraint_that_is_kept_is_missed_by_nothing() -> None:
    assert max(goal(constraints={"safety": 0.5, "math": "score <= 0.4"}).missed_by(scored(0.4, 0.7)).values()) <= 0


def test_an_objective_may_be_a_constraint() -> None:
    found = goal(objective="math", constraints={"worst_domain": 0.9})
    assert found.missed_by(scored(0.4, 0.8)) == {"worst_domain >= 0.9": pytest.approx(0.9 - 0.8)}
    assert found.values(scored(0.4, 0.8))["math"].value == pytest.approx(0.8)


def test_what_is_not_known_keeps_no_constraint() -> None:
    found = goal(objective="math", constraints={"safety": 0.1}).missed_by(scored(0.4, math.nan))
    assert found == {"safety >= 0.1": math.inf}


def test_the_value_of_an_objective_has_the_part_of_the_references_error_apart() -> None:
    (value,) = goal(objective="math").values(scored(0.4, 0.7)).values()
    assert value.value == pytest.approx(0.8)
    assert value.reference_error == pytest.approx(0.4 / 0.5**2 * 0.02)
    assert value.standard_error == pytest.approx(math.hypot(0.03 / 0.5, 0.4 / 0.5**2 * 0.02))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"objective": "wurst_domain"}, "no such objective or scored domain; did you mean 'worst_domain'?"),
        (
            {"objective": "maths"},
            "search.objective = 'maths': no such objective or scored domain; did you mean 'math'?",
        ),
        ({"objective": {"maths": 1}}, "'maths' is no domain that is scored; did you mean 'math'?"),
        ({"objective": {"math": -1}}, "search.objective.math = -1: Input should be greater than 0"),
        ({"objective": {}}, "search.objective = {}"),
        ({"objective": 3}, "search.objective = 3: expected one objective: a name, or weights of domains such as"),
        ({"objective": True}, "search.objective = True"),
        (
            {"constraints": {"safty": 0.9}},
            "'safty' is no domain that is scored, and no objective; did you mean 'safety'?",
        ),
        ({"constraints": {"safety": "> 0.9"}}, "search.constraints.safety = '> 0.9': expected '>= 0.9'"),
        ({"constraints": {"safety": True}}, "search.constraints.safety = True"),
        ({"constraints": {"safety": ">= 1e999"}}, "expected '>= 0.9'"),
        ({"constraints": {"safety": ">= 0.9 and <= 0.5"}}, "no number is at least 0.9 and at most 0.5"),
        ({"constraints": {"safety": "score >= 2 and score <= 1"}}, "no number is at least 2 and at most 1"),
        ({"constraints": {"worst_domain": "score >= 0.5"}}, "an objective has no score; leave the word 'score' out"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_before_anything_is_loaded(
    setting: dict[str, Any], reason: str
) -> None:
    assert reason in refused_search(SWEEP, setting)


def test_a_domain_that_is_not_scored_is_no_objective_and_no_constraint() -> None:
    for key, value in (("objective", "math"), ("constraints", {"math": 0.5})):
        with pytest.raises(InputError, match=r"'math'.*scored"):
            read_sweep(SWEEP, {"evaluation.domains": ["coding", "safety"], f"search.{key}": value})


def test_forgetting_needs_a_suite_that_has_such_tasks_which_are_then_scored(tmp_path: Path) -> None:
    for setting in (
        {"search.objective": "forgetting"},
        {"search.objective": ["normalised_average", "forgetting"]},
        {"search.constraints": {"forgetting": 0.9}},
    ):
        with pytest.raises(InputError, match="suite smollm2-mini has no tasks in its forgetting section"):
            read_sweep(SWEEP, setting)
        path = tmp_path / "suite.yaml"
        path.write_text(
            "name: mine\nextends: smollm2-mini\ndomains: {coding: null}\n"
            "forgetting: {programs: {tasks: {mini_coding: score}}}\nspecialists: {coding: null}\n"
        )
        sweep = read_sweep(SWEEP, {**setting, "suite": str(path)})
        suite = sweep.load_suite()
        assert sweep.scoring(suite).domains == [*suite.domains, "programs"]
    assert read_sweep(SWEEP).scoring(suite).domains is None


def test_objectives_and_constraints_that_mean_something_are_taken() -> None:
    for objective in ("normalised_average", "worst_domain", "math", {"math": 2, "coding": 1}):
        sweep = read_sweep(
            SWEEP, {"search.objective": objective, "search.constraints": {"safety": 0.9, "math": ">= 0"}}
        )
        assert sweep.search.constraints == {"safety": ">= 0.9", "math": ">= 0"}


# What Optuna is told


def candidate(number: int, found: Goal, measured: Measured) -> Trial:
    return Trial(
        *("candidate", "ties", "validation", f"d{number}", "i"),
        domains=measured.domains,
        objectives=found.values(measured),
        constraints=found.missed_by(measured),
        optuna_number=number,
    )


def test_the_study_has_the_objectives_name_and_knows_who_keeps_the_constraints(tmp_path: Path) -> None:
    found = goal(objective={"math": 1, "safety": 3}, constraints={"safety": 0.9})
    run = RunFolder(tmp_path)
    own = RunStudy(open_storage(run, SearchOptions()), "x", run, found.objective)
    for measured in (scored(0.45, 0.5), scored(0.2, 0.76), scored(0.3, math.nan)):
        row = candidate(own.study.ask().number, found, measured)
        own.describe(row)
        own.describe(row)  # as after a run that was killed between
        value = row.objective.value
        own.study.tell(row.optuna_number or 0, value, state=None if value else optuna.trial.TrialState.FAIL)
    assert own.study.metric_names == ["1 math + 3 safety"]
    kept = [trial.constraints["safety >= 0.9"] for trial in own.study.get_trials()]
    assert kept == [pytest.approx(0.9 - 0.5 / 0.8), pytest.approx(0.9 - 0.76 / 0.8), 10.0]
    assert own.study.best_trial.number == 1
    attributes = own.study.trials[1].user_attrs
    assert "objective_standard_error" in attributes


def test_a_sampler_of_optuna_stays_where_constraints_are_kept(tmp_path: Path) -> None:
    """More of math is better, but costs safety: without its constraint the sampler goes to the upper end."""
    means = []
    for constraints in ({}, {"safety": 0.9}):
        found = goal(objective="math", constraints=constraints)
        run = RunFolder(tmp_path / str(len(constraints)))
        run.path.mkdir()
        own = RunStudy(optuna.storages.InMemoryStorage(), "x", run, found.objective)
        own.study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=8)
        tried = []
        for _ in range(25):
            trial = own.study.ask()
            weight = trial.suggest_float("weight", 0, 1)
            row = candidate(trial.number, found, scored(0.5 * weight, 0.8 - 0.3 * weight))
            own.describe(row)
            own.study.tell(trial, row.objective.value)
            tried.append(weight)
        means.append(sum(tried[-10:]) / 10)
    assert means[0] > 0.8
    assert means[1] < 0.5


@pytest.mark.parametrize("options", [{"objective": "worst_domain"}, {"constraints": {"worst_domain": ">= 0.5"}}])
def test_a_domain_that_bears_an_objectives_name_is_refused_where_it_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'worst_domain' is an objective and a domain .*another name"):
        check_goal(SearchOptions(**options), ["math", "worst_domain"])
    check_goal(SearchOptions(**options), ["math", "coding"])
