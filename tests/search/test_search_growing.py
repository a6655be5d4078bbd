"""Ranges that grow: bounds move on where the best candidates lie there, the same after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from mergebench_ray.config import Sweep
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError
from mergebench_ray.search.growing import GrowingRanges
from mergebench_ray.search.samplers import OWN_ERROR, search_sampler, try_sampler
from mergebench_ray.search.space import Space

DOMAINS = ["coding", "math"]
GROWING = {"low": 0.1, "high": 0.6, "per": "specialist", "grow_to": [0.0, 1.5]}
MATH = "task_arithmetic.scaling_coef.math"
CODING = "task_arithmetic.scaling_coef.coding"

Function = Callable[[dict[str, Any]], float]


def sweep_of(methods: dict[str, Any], **search: Any) -> Sweep:
    return parse_model(Sweep, {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search}, "sweep")


def searched(
    function: Function, count: int, sampler: str = "auto", *, study: optuna.Study | None = None
) -> optuna.Study:
    """A search whose sampler is made anew for each candidate, as after an interruption."""
    sweep = sweep_of({"task_arithmetic": {"scaling_coef": GROWING}}, sampler=sampler)
    space = Space(sweep, DOMAINS, None)
    study = study or optuna.create_study(direction="maximize")
    for _ in range(count):
        study.sampler = search_sampler(sweep.search, space)
        trial = study.ask()
        space.suggest(trial)
        trial.set_user_attr(OWN_ERROR, 0.01)
        study.tell(trial, function(trial.params))
    return study


def try_sweep(sweep: Sweep) -> None:
    try_sampler(sweep, Space(sweep, DOMAINS, None))


def hill(math: float, coding: float) -> Function:
    return lambda params: float(np.exp(-2 * (params[MATH] - math) ** 2 - 2 * (params[CODING] - coding) ** 2))


@pytest.mark.parametrize(("sampler", "count"), [("auto", 25), ("TPESampler", 60), ("RandomSampler", 80)])
def test_a_search_leaves_the_range_where_the_best_lies_outside(sampler: str, count: int) -> None:
    study = searched(hill(1.1, 0.35), count, sampler)
    tried = np.array([[one.params[MATH], one.params[CODING]] for one in study.trials])
    assert tried[:8].min() >= 0.1
    assert tried[:8].max() <= 0.6
    assert tried[:, 0].max() > 0.85
    assert study.best_params[MATH] > 0.8


def test_a_range_stays_where_the_best_lies_inside() -> None:
    tried = [one.params[name] for one in searched(hill(0.35, 0.4), 20).trials for name in (MATH, CODING)]
    assert 0.1 <= min(tried) <= max(tried) <= 0.6


def test_proposals_are_those_of_a_search_in_one_go() -> None:
    calm = searched(hill(1.1, 0.35), 16)
    again = searched(hill(1.1, 0.35), 12)
    searched(hill(1.1, 0.35), 4, study=again)
    assert [one.params for one in again.trials] == [one.params for one in calm.trials]


def ranges_after(parameter: dict[str, Any], values: list[float], scores: list[float], **told: Any) -> Any:
    """The range of density, once candidates with these values have these scores."""
    space = Space(sweep_of({"ties": {"density": parameter}}), DOMAINS, None)
    study = optuna.create_study(direction="maximize")
    known = space.distributions("ties")
    for number, (value, score) in enumerate(zip(values, scores, strict=True)):
        constraints = {name: distances[number] for name, distances in told.items()}
        study.add_trial(
            optuna.trial.create_trial(
                params={"ties.density": value}, distributions=known, value=score, constraints=constraints
            )
        )
    return GrowingRanges(space).at(study, len(values))["ties.density"]


def test_a_bound_moves_by_half_of_the_first_range_once_eight_are_known() -> None:
    density, rising = {"low": 0.2, "high": 0.4, "grow_to": [0.1, 1.0]}, [0.39] * 8
    scores = [float(score) for score in range(8)]
    assert ranges_after(density, rising[:7], scores[:7]) == FloatDistribution(0.2, 0.4)
    assert ranges_after(density, rising, scores) == FloatDistribution(0.2, 0.5)
    assert ranges_after(density, [0.21] * 8, scores) == FloatDistribution(0.1, 0.4)


def test_a_bound_moves_on_the_scale_that_is_searched_and_no_further_than_it_may() -> None:
    density = {"low": 0.01, "high": 0.04, "log": True, "grow_to": [0.006, 0.5]}
    scores = [float(score) for score in range(8)]
    found = ranges_after(density, [0.039] * 8, scores)
    assert (found.low, found.high, found.log) == (0.01, pytest.approx(0.08), True)
    assert ranges_after(density, [0.0101] * 8, scores).low == 0.006


def test_what_was_tried_lies_within_a_range() -> None:
    density = {"low": 0.2, "high": 0.4, "grow_to": [0.1, 1.0]}
    assert ranges_after(density, [0.7], [0.0]) == FloatDistribution(0.2, 0.7)


def test_candidates_that_miss_a_constraint_move_no_bound_before_those_that_keep_it() -> None:
    density, values = {"low": 0.2, "high": 0.4, "grow_to": [0.1, 1.0]}, [0.3] * 5 + [0.39] * 5
    scores = [float(score) for score in range(10)]
    assert ranges_after(density, values, scores) == FloatDistribution(0.2, 0.5)
    kept = ranges_after(density, values, scores, safety=[-0.1] * 5 + [0.1] * 5)
    assert kept == FloatDistribution(0.2, 0.4)


def test_whole_numbers_stay_whole() -> None:
    space = Space(
        sweep_of({"dare": {"seed": {"low": 2, "high": 5, "integer": True, "grow_to": [0, 9]}}}), DOMAINS, None
    )
    study = optuna.create_study(direction="maximize")
    for score in range(8):
        study.add_trial(
            optuna.trial.create_trial(params={"dare.seed": 5}, distributions=space.distributions("dare"), value=score)
        )
    assert GrowingRanges(space).at(study, 8) == {"dare.seed": IntDistribution(2, 7)}


@pytest.mark.parametrize(
    ("change", "search", "expected"),
    [
        ({"grow_to": [0.2, 1.5]}, {}, r"grow_to needs a range around low 0\.1 and high 0\.6"),
        ({"grow_to": [0.1, 0.6]}, {}, "grow_to needs a range around"),
        ({"log": True}, {}, "log: true needs grow_to above 0"),
        ({"grow_to": [0.0, 7]}, {}, "scaling_coef"),
        ({}, {"sampler": "CmaEsSampler"}, "knows of none that grows"),
        ({}, {"sampler": "TPESampler", "sampler_options": {"multivariate": True, "group": True}}, "by groups"),
        ({}, {"objective": ["math", "coding"]}, "knows one objective"),
    ],
)
def test_a_range_that_cannot_grow_is_refused_in_one_line(
    change: dict[str, Any], search: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        try_sweep(sweep_of({"task_arithmetic": {"scaling_coef": GROWING | change}}, **search))
    assert "\n" not in str(caught.value)


def test_a_point_may_lie_where_a_range_may_grow_to() -> None:
    sweep = sweep_of({"task_arithmetic": {"scaling_coef": GROWING}}, points_to_evaluate=[{"scaling_coef": 1.2}])
    space = Space(sweep, DOMAINS, None)
    study = optuna.create_study(direction="maximize", sampler=search_sampler(sweep.search, space))
    study.enqueue_trial(space.points(sweep.search.points_to_evaluate)[0])
    trial = study.ask()
    space.suggest(trial)
    assert trial.params == {MATH: 1.2, CODING: 1.2}


def test_several_methods_grow_each_by_its_own_candidates() -> None:
    methods = {
        "task_arithmetic": {"scaling_coef": GROWING},
        "ties": {"density": {"low": 0.2, "high": 0.4, "grow_to": [0.1, 1.0]}},
    }
    sweep = sweep_of(methods)
    space = Space(sweep, DOMAINS, None)
    study = optuna.create_study(direction="maximize")
    for number in range(25):
        study.sampler = search_sampler(sweep.search, space)
        trial = study.ask()
        space.suggest(trial)
        value = trial.params.get("ties.density", 0.0)
        study.tell(trial, value + 0.001 * number)
    assert max(one.params.get("ties.density", 0.0) for one in study.trials) > 0.5
