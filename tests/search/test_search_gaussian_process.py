"""Proposals of a Gaussian process that knows the errors of what it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mergebench_ray.search.gaussian_process import (
    STARTUP,
    STARTUP_OF_EACH,
    GaussianProcess,
    GaussianProcessSampler,
    log_expected_improvement,
)
from mergebench_ray.search.space import METHOD

SQUARE: dict[str, BaseDistribution] = {"a": FloatDistribution(0, 2), "b": FloatDistribution(-1, 1)}
MIXED: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(0.001, 1, log=True),
    "layers": IntDistribution(1, 7),
    "kind": CategoricalDistribution(["sum", "mean", True]),
    "always": CategoricalDistribution([3]),
}


def searched(
    space: dict[str, BaseDistribution],
    function: Callable[[dict[str, Any]], float],
    trials: int,
    *,
    direction: str = "maximize",
    error: float = 0.0,
) -> optuna.Study:
    study = optuna.create_study(direction=direction)
    noise = np.random.default_rng(0)
    for number in range(trials):
        study.sampler = GaussianProcessSampler({"m": space}, "error", seed=number, sequence_seed=0)
        trial = study.ask(space)
        trial.set_user_attr("error", error)
        study.tell(trial, function(trial.params) + error * noise.standard_normal())
    return study


def hill(params: dict[str, Any]) -> float:
    return float(np.exp(-((params["a"] - 1.2) ** 2) - (params["b"] - 0.3) ** 2))


def test_a_model_goes_through_what_is_exact_and_between_what_is_not() -> None:
    points = np.array([[0.0], [0.5], [1.0]])
    values, kinds = np.array([0.0, 1.0, 0.0]), np.zeros(3, dtype=int)
    exact, deviation = GaussianProcess(points, values, np.full(3, 1e-3), kinds).predict(points, 0)
    assert exact == pytest.approx(values, abs=0.02)
    assert (deviation < 0.02).all()
    errors = np.array([1e-3, 1.0, 1e-3])
    between, deviation = GaussianProcess(points, values, errors, kinds).predict(points, 0)
    assert between[1] < 0.5
    assert deviation[1] > 10 * deviation[0]


def test_the_top_of_a_hill_is_found_among_noise() -> None:
    study = searched(SQUARE, hill, 25, error=0.02)
    assert hill(study.best_params) > 0.97
    assert np.mean([hill(trial.params) for trial in study.trials[-5:]]) > 0.9


def test_a_study_that_minimises_goes_down() -> None:
    study = searched(SQUARE, lambda params: -hill(params), 20, direction="minimize")
    assert hill(study.best_params) > 0.97


def test_the_first_candidates_keep_away_from_those_of_other_runs() -> None:
    spread = [one.params for one in searched(SQUARE, hill, 3).trials]
    study = optuna.create_study(direction="maximize")
    for params in spread:
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=SQUARE, value=hill(params), user_attrs={"taken_from": "a"}
            )
        )
    for number in range(3, STARTUP):
        study.sampler = GaussianProcessSampler({"m": SQUARE}, "error", seed=number, sequence_seed=0)
        study.tell(study.ask(SQUARE), 0.0)
    points = np.array([[one.params["a"] / 2, (one.params["b"] + 1) / 2] for one in study.trials])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(STARTUP)
    assert apart.min() > 0.15


def test_the_first_candidates_are_spread_evenly_whatever_they_score() -> None:
    first, second = (searched(SQUARE, function, STARTUP) for function in (hill, lambda params: -hill(params)))
    assert [one.params for one in first.trials] == [one.params for one in second.trials]
    for name, low, width in (("a", 0, 2), ("b", -1, 2)):
        eighths = sorted(int((one.params[name] - low) / width * STARTUP) for one in first.trials)
        assert eighths == list(range(STARTUP))


def test_choices_whole_numbers_and_logarithms_are_searched_inside_their_bounds() -> None:
    def value(params: dict[str, Any]) -> float:
        assert 0.001 <= params["rate"] <= 1
        assert type(params["layers"]) is int
        assert 1 <= params["layers"] <= 7
        assert params["always"] == 3
        return (params["kind"] == "mean") - abs(np.log10(params["rate"]) + 2) - abs(params["layers"] - 5) / 4

    study = searched(MIXED, value, 40)
    assert study.best_params["kind"] == "mean"
    assert study.best_value > 0.7


def test_engines_that_work_at_once_do_not_try_the_same() -> None:
    study = searched(SQUARE, hill, 10, error=0.05)
    study.sampler = GaussianProcessSampler({"m": SQUARE}, "error", seed=20, sequence_seed=0)
    proposed = []
    for _ in range(3):
        proposed.append(study.ask(SQUARE).params)
    apart = [abs(one["a"] - two["a"]) + abs(one["b"] - two["b"]) for one in proposed for two in proposed if one != two]
    assert len(apart) == 6
    assert min(apart) > 0.05


@pytest.mark.parametrize("values", [[0.5] * 12, [float("-inf"), *[0.5] * 11], [1e9, 1e-9] * 6], ids=str)
def test_scores_that_say_nothing_do_not_stop_a_search(values: list[float]) -> None:
    left = iter(values)
    study = searched(SQUARE, lambda _: next(left), len(values))
    assert len({str(one.params) for one in study.trials}) == len(values)


SEVERAL: dict[str, dict[str, BaseDistribution]] = {
    "low": {"low.a": FloatDistribution(0, 1)},
    "high": {"high.a": FloatDistribution(0, 2), "high.b": FloatDistribution(-1, 1)},
    "alone": {},
    "few": {"few.kind": CategoricalDistribution(["sum", "mean", "max"])},
}


def searched_several(trials: int, *, error: float = 0.02) -> optuna.Study:
    """A search of several methods, of which `high` has a hill above all others."""
    study = optuna.create_study(direction="maximize")
    noise = np.random.default_rng(0)
    for number in range(trials):
        study.sampler = GaussianProcessSampler(SEVERAL, "error", seed=number, sequence_seed=0)
        trial = study.ask()
        method = trial.suggest_categorical(METHOD, [*SEVERAL])
        for name, one in SEVERAL[method].items():
            trial._suggest(name, one)
        trial.set_user_attr("error", error)
        study.tell(trial, several(trial.params) + error * noise.standard_normal())
    return study


def several(params: dict[str, Any]) -> float:
    if params[METHOD] == "high":
        return hill({"a": params["high.a"], "b": params["high.b"]})
    return {"low": 0.5 - (params.get("low.a", 0) - 0.5) ** 2, "alone": 0.6, "few": 0.3}[params[METHOD]]


@pytest.mark.slow
def test_of_several_methods_the_one_that_promises_most_gets_most_candidates() -> None:
    methods = Counter(one.params[METHOD] for one in searched_several(40).trials)
    assert methods["high"] > 20
    assert methods["low"] >= STARTUP_OF_EACH


def test_each_of_several_methods_begins_with_a_few_candidates_that_are_spread_evenly() -> None:
    trials = searched_several(12).trials
    assert Counter(one.params[METHOD] for one in trials) == {"low": 4, "high": 4, "alone": 1, "few": 3}
    assert [one.params[METHOD] for one in trials[:4]] == [*SEVERAL]
    quarters = sorted(int(one.params["low.a"] * 4) for one in trials if one.params[METHOD] == "low")
    assert quarters == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_candidate_of_a_method_that_has_only_a_few_is_proposed_once() -> None:
    trials = searched_several(40).trials
    assert len([one for one in trials if one.params[METHOD] == "alone"]) == 1
    assert len([one for one in trials if one.params[METHOD] == "few"]) == 3


def test_the_others_are_searched_on_where_a_method_without_numbers_is_best_by_far() -> None:
    study = optuna.create_study(direction="maximize")
    space: dict[str, BaseDistribution] = {f"low.{name}": FloatDistribution(0, 1) for name in "abcde"}
    methods: dict[str, dict[str, BaseDistribution]] = {"low": space, "alone": {}}
    for number in range(20):
        study.sampler = GaussianProcessSampler(methods, "error", seed=number, sequence_seed=0)
        trial = study.ask()
        numbers = {} if trial.suggest_categorical(METHOD, [*methods]) == "alone" else space
        values = [trial._suggest(name, one) for name, one in numbers.items()]
        trial.set_user_attr("error", 0.01)
        study.tell(trial, 0.3 - sum((one - 0.4) ** 2 for one in values) / 50 if numbers else 9.0)
    points = [[*one.params.values()][1:] for one in study.trials if len(one.params) > 1]
    assert len(points) == 19
    apart = [np.abs(np.subtract(one, other)).max() for place, one in enumerate(points) for other in points[:place]]
    assert min(apart) > 0.01


def test_the_logarithm_of_the_expected_improvement_is_that_of_its_definition() -> None:
    mean = np.linspace(-6, 3, 45)
    deviation, grid = np.full(45, 0.7), np.linspace(-12, 12, 400_001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    definition = [np.trapezoid(np.maximum(0, one + 0.7 * grid - 0.5) * density, grid) for one in mean]
    found = log_expected_improvement(mean, deviation, 0.5)
    assert found == pytest.approx(np.log(definition), rel=1e-4)


def test_of_candidates_far_below_the_best_the_nearest_in_deviations_promises_most() -> None:
    mean, deviation = np.array([-30.0, -30.0, -20.0, -1e5, -9e4]), np.array([0.5, 0.6, 0.5, 1.0, 1.0])
    found = log_expected_improvement(mean, deviation, 0.0)
    assert np.isfinite(found).all()
    assert [*np.argsort(-found)] == [2, 1, 0, 4, 3]


def test_neighbours_that_say_the_same_do_not_draw_the_search_to_themselves() -> None:
    study = optuna.create_study(direction="maximize")
    space: dict[str, BaseDistribution] = {f"x.{name}": FloatDistribution(0, 1) for name in "abcde"}
    for number in range(30):
        study.sampler = GaussianProcessSampler({"x": space}, "error", seed=number, sequence_seed=0)
        trial = study.ask()
        values = [trial._suggest(name, one) for name, one in space.items()]
        trial.set_user_attr("error", 0.15)  # as of 15 items, by which nearly all scores are alike
        study.tell(trial, 0.35 + 0.1 * (values[0] < 0.05))
    points = np.array([[*one.params.values()] for one in study.trials])
    apart = np.abs(points[:, None] - points[None]).max(axis=2)
    assert max((apart[place, :place] < 0.05).sum() for place in range(30)) < 3


def test_candidates_that_came_to_nothing_are_tried_ones_too() -> None:
    study = optuna.create_study(direction="maximize")
    space: dict[str, BaseDistribution] = {f"x.{name}": FloatDistribution(0, 1) for name in "ab"}
    for number in range(30):
        study.sampler = GaussianProcessSampler({"x": space}, "error", seed=number, sequence_seed=0)
        trial = study.ask()
        value, _ = (trial._suggest(name, one) for name, one in space.items())
        trial.set_user_attr("error", 0.05)
        study.tell(trial, value) if value < 0.8 else study.tell(trial, state=TrialState.FAIL)
    points = np.array([[*one.params.values()] for one in study.trials])
    apart = np.abs(points[:, None] - points[None]).max(axis=2)
    assert sum(one.state == TrialState.FAIL for one in study.trials) > 3
    assert max((apart[place, :place] < 0.05).sum() for place in range(30)) < 3
