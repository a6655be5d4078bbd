"""Proposals for several objectives, which know the errors of what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from mergebench_ray.config import Sweep
from mergebench_ray.runs.front import non_dominated
from mergebench_ray.search.front_proposals import FrontSampler, _relevant
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.space import Space

SPACE: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in "abc"}
Function = Callable[[dict[str, Any]], list[float]]


def searched(
    function: Function,
    trials: int,
    *,
    directions: Any = ("maximize", "maximize"),
    error: float = 0.0,
    space: Any = SPACE,
) -> optuna.Study:
    study = optuna.create_study(directions=list(directions))
    noise = np.random.default_rng(0)
    for number in range(trials):
        study.sampler = FrontSampler({"m": space}, "errors", seed=number, sequence_seed=0)
        trial = study.ask(space)
        trial.set_user_attr("errors", [error, None])
        study.tell(trial, (np.array(function(trial.params)) + error * noise.standard_normal(2)).tolist())
    return study


def two_hills(params: dict[str, Any]) -> list[float]:
    """The best are on the line between two points, with a + b = 1 and c = 0.5."""
    square = np.array([params["a"], params["b"], params["c"]])
    return [float(-((square - top) ** 2).sum()) for top in ([0.8, 0.2, 0.5], [0.2, 0.8, 0.5])]


def volume(values: Any) -> float:
    """What the candidates exceed between -0.8 and 0, on a grid."""
    grid = np.stack(np.meshgrid(*[np.linspace(-0.8, 0, 60)] * 2), axis=-1).reshape(-1, 2)
    return float(np.mean([(np.array(values) >= point).all(axis=1).any() for point in grid]))


@pytest.mark.slow
def test_the_front_is_found_and_spread_out_among_noise() -> None:
    study = searched(two_hills, 30, error=0.02)
    true = np.array([two_hills(trial.params) for trial in study.trials])
    source = np.random.default_rng(0)
    random = [two_hills(dict(zip("abc", point))) for point in source.random((300, 3))]
    assert volume(true) > volume(random)
    front = true[non_dominated(true)]
    assert front[:, 0].max() > -0.1
    assert front[:, 1].max() > -0.1


def test_a_front_of_one_that_is_better_than_all_others_in_everything_is_widened() -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    corners = [{"a": float(end), "b": float(end), "c": c} for end in (0, 1) for c in (0.0, 1.0)]
    for params in [dict.fromkeys("abc", 0.5), *corners]:
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, values=two_hills(params)))
    for number in range(20):
        study.sampler = FrontSampler({"m": SPACE}, "errors", seed=number, sequence_seed=0)
        trial = study.ask(SPACE)
        study.tell(trial, two_hills(trial.params))
    best = np.max([trial.values for trial in study.trials], axis=0)
    assert best.min() > -0.05, "the one that all others are worse than has -0.18"


def test_an_objective_that_is_minimised_goes_down() -> None:
    up = searched(two_hills, 14)
    down = searched(
        lambda params: [two_hills(params)[0], -two_hills(params)[1]], 14, directions=("maximize", "minimize")
    )
    assert [one.params for one in up.trials] == [one.params for one in down.trials]


def test_models_are_made_of_the_latest_candidates_and_of_the_front_before_them() -> None:
    values = np.stack([np.arange(300.0) % 7, np.zeros(300)], axis=1)
    values[[3, 5]] = [[0.0, 9.0], [9.0, 0.0]]
    assert _relevant(values) == [3, 5, *range(200, 300)]
    assert _relevant(values[:50]) == list(range(50))
    falling = np.stack([np.arange(300.0), -np.arange(300.0)], axis=1)
    assert _relevant(falling) == list(range(140, 300))


def test_engines_that_work_at_once_do_not_try_the_same() -> None:
    study = searched(two_hills, 10, error=0.05)
    study.sampler = FrontSampler({"m": SPACE}, "errors", seed=20, sequence_seed=0)
    proposed = [list(study.ask(SPACE).params.values()) for _ in range(3)]
    apart = [np.abs(np.subtract(one, two)).sum() for one in proposed for two in proposed if one is not two]
    assert min(apart) > 0.05


@pytest.mark.parametrize("value", [0.5, float("-inf"), 1e9], ids=str)
def test_scores_that_say_nothing_do_not_stop_a_search(value: float) -> None:
    space = {**SPACE, "kind": CategoricalDistribution(["sum", "mean"])}
    study = searched(lambda _: [value, 0.5], 11, space=space)
    assert len(study.trials) == 11


def test_auto_searches_for_a_front_by_it_where_it_models_one_objective_too() -> None:
    coefficient = {"low": 0.0, "high": 1.0, "per": "specialist"}
    content = {"name": "x", "suite": "smollm2-mini", "methods": {"task_arithmetic": {"scaling_coef": coefficient}}}
    sweep = Sweep.model_validate({**content, "search": {"objective": ["coding", "math"]}})
    space = Space(sweep, ["coding", "math"], None)
    assert isinstance(search_sampler(sweep.search, space).made_of, FrontSampler)
    kept = sweep.search.model_copy(update={"constraints": {"math": ">= 0.5"}})
    assert isinstance(search_sampler(kept, space).made_of, optuna.samplers.TPESampler)
