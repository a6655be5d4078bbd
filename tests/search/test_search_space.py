from __future__ import annotations

from typing import Any

import optuna
import pytest
from ray.tune.search.optuna import OptunaSearch

from mergebench_ray.config import Sweep
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError
from mergebench_ray.search.samplers import make_sampler, try_sampler
from mergebench_ray.search.space import Space

SPECIALISTS = ["math", "coding"]
LAYERS = 4


def make_sweep(methods: dict[str, Any], **search: Any) -> Sweep:
    return parse_model(
        Sweep, {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search}, "sweep.yaml"
    )


def make_space(methods: dict[str, Any], **search: Any) -> Space:
    return Space(make_sweep(methods, **search), SPECIALISTS, LAYERS)


def suggest(space: Space, fixed: dict[str, Any] | None = None, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers that Optuna suggested, and the same with what the space adds, as Ray Tune passes it on."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if fixed:
        study.enqueue_trial(fixed)
    trial = study.ask()
    constants = space.suggest(trial)
    return trial.params, {**trial.params, **constants}


def test_one_number_per_specialist_and_layer_group() -> None:
    space = make_space(
        {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 2}}}
    )
    numbers, suggestion = suggest(space)
    assert sorted(numbers) == [
        f"task_arithmetic.scaling_coef.{specialist}.{group}" for specialist in sorted(SPECIALISTS) for group in (0, 1)
    ]
    method, parameters = space.candidate(suggestion)
    assert method == "task_arithmetic"
    assert parameters["scaling_coef"]["math"] == [
        numbers["task_arithmetic.scaling_coef.math.0"],
        numbers["task_arithmetic.scaling_coef.math.1"],
    ]


def test_two_numbers_per_specialist_are_the_ends_of_a_line() -> None:
    methods = {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "lines": True}}}
    math = {"first": 0.1, "last": 0.6}
    space = make_space(methods, points_to_evaluate=[{"scaling_coef": {"math": math, "coding": 0.3}}])
    assert space.num_numbers == 2 * len(SPECIALISTS)
    (point,) = space.points([{"scaling_coef": {"math": math, "coding": 0.3}}])
    numbers, suggestion = suggest(space, point)
    assert numbers["task_arithmetic.scaling_coef.math.last"] == 0.6
    assert space.candidate(suggestion) == (
        "task_arithmetic",
        {"scaling_coef": {"coding": {"first": 0.3, "last": 0.3}, "math": math}},
    )


def test_numbers_for_each_kind_of_module_and_layer_group() -> None:
    searched = {"low": 0, "high": 1, "per": "specialist", "layer_groups": 2, "module_kinds": True}
    space = make_space({"task_arithmetic": {"scaling_coef": searched}})
    math = {"attention": [0.1, 0.2], "mlp": 0.3, "norm": [0.5, 0.6]}
    (point,) = space.points([{"scaling_coef": {"math": math, "coding": 0.4}}])
    assert space.num_numbers == len(space.distributions("task_arithmetic")) == len(point) == 2 * 3 * 2
    numbers, suggestion = suggest(space, point)
    assert numbers["task_arithmetic.scaling_coef.math.norm.1"] == 0.6
    coding = {"attention": [0.4, 0.4], "mlp": [0.4, 0.4], "norm": [0.4, 0.4]}
    assert space.candidate(suggestion) == (
        "task_arithmetic",
        {"scaling_coef": {"coding": coding, "math": math | {"mlp": [0.3, 0.3]}}},
    )


def test_kinds_of_modules_may_each_have_a_line() -> None:
    searched = {"low": 0, "high": 1, "per": "specialist", "lines": True, "module_kinds": True}
    space = make_space({"ties": {"scaling_coef": searched}})
    math = {"attention": {"first": 0.1, "last": 0.2}, "mlp": 0.3, "norm": 0.4}
    (point,) = space.points([{"scaling_coef": {"math": math, "coding": 0.4}}])
    _, suggestion = suggest(space, point)
    found = space.candidate(suggestion)[1]["scaling_coef"]["math"]
    assert found == math | {kind: {"first": math[kind], "last": math[kind]} for kind in ("mlp", "norm")}


def test_only_the_chosen_methods_numbers_are_in_a_trial() -> None:
    space = make_space(
        {
            "ties": {"density": {"low": 0.1, "high": 0.5, "log": True}, "merge_func": {"choices": ["sum", "mean"]}},
            "dare": {"p": {"low": 0.5, "high": 0.9}, "seed": {"low": 0, "high": 9, "integer": True}},
        }
    )
    seen = set()
    for seed in range(20):
        numbers, suggestion = suggest(space, seed=seed)
        method, parameters = space.candidate(suggestion)
        seen.add(method)
        assert {name.split(".")[0] for name in numbers} == {"method", method}
        if method == "dare":
            assert isinstance(parameters["seed"], int)
    assert seen == {"ties", "dare"}


def test_a_point_with_one_number_for_all_is_spread_over_specialists() -> None:
    points = [{"method": "task_arithmetic", "scaling_coef": 0.4}]
    space = make_space(
        {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist"}}, "model_soup": None},
        points_to_evaluate=points,
    )
    (point,) = space.points(points)
    _, suggestion = suggest(space, fixed=point)
    assert space.candidate(suggestion) == ("task_arithmetic", {"scaling_coef": {"coding": 0.4, "math": 0.4}})


@pytest.mark.parametrize(
    ("methods", "search", "expected"),
    [
        ({"tise": {"density": {"low": 0.1, "high": 0.5}}}, {}, "ties"),
        ({"ties": {"densty": {"low": 0.1, "high": 0.5}}}, {}, "densty"),
        ({"ties": {"density": {"low": 0.1, "high": 1.5}}}, {}, "density"),
        ({"ties": {"merge_func": {"choices": ["sum", "median"]}}}, {}, "merge_func"),
        ({"ties": {"density": 0.2}}, {}, "nothing to search"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{"density": 0.9}]}, "outside"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{}]}, "missing"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{"k": 1}]}, "unknown key 'k'"),
        (
            {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 9}}},
            {},
            "layer",
        ),
        ({"dare": {"seed": {"low": 0, "high": 9}}}, {}, "valid integer"),
        (
            {
                method: {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 1000}}
                for method in ("task_arithmetic", "ties", "dare", "consensus")
            },
            {},
            "layer groups, but the model has 4 layers",
        ),
        ({"consensus": {"k": {"low": 1, "high": 9, "integer": True}}}, {}, "k = 9"),
        ({"consensus": {"mu": {"low": 0, "high": 1e12}}}, {}, "mu"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{"density": True}]}, "outside"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{"density": [0.2]}]}, "a number"),
        ({"ties": {"density": {"low": 0.1, "high": 0.5}}}, {"points_to_evaluate": [{"method": ["a"]}]}, "not one of"),
        (
            {"ties": {"density": {"low": 0.1, "high": 0.5}, "scaling_coef": 0.3}},
            {"points_to_evaluate": [{"density": 0.2, "scaling_coef": 0.4}]},
            "fixes it at 0.3",
        ),
        (
            {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist"}}},
            {"points_to_evaluate": [{"scaling_coef": {"math": 0.1, "coding": 0.2, "law": 0.3}}]},
            "wrong or missing: law",
        ),
        (
            {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 2}}},
            {"points_to_evaluate": [{"scaling_coef": [0.1, 0.2, 0.3]}]},
            "a list of 2",
        ),
        (
            {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "lines": True}}},
            {"points_to_evaluate": [{"scaling_coef": {"math": {"first": 0.1}, "coding": 0.2}}]},
            r"a number, or \{first: ..., last: ...\} is needed",
        ),
        (
            {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "module_kinds": True}}},
            {"points_to_evaluate": [{"scaling_coef": {"math": {"attention": 0.1, "mlp": 0.2}, "coding": 0.2}}]},
            r"a number, or \{attention: ..., mlp: ..., norm: ...\} is needed",
        ),
        ({"fisher": {"weight": {"low": 0.1, "high": 1, "per": "specialist", "lines": True}}}, {}, "fisher"),
        (
            {"consensus": {"k": {"low": 1, "high": 2, "integer": True}}},
            {"points_to_evaluate": [{"k": 1.5}]},
            "whole numbers",
        ),
    ],
)
def test_a_space_that_no_method_accepts_is_refused(
    methods: dict[str, Any], search: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        make_space(methods, **search)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.4, [0.4, 0.4]),
        ([0.1, 0.2], [0.1, 0.2]),
        ({"math.v2": 0.3, "coding": [0.1, 0.2]}, [0.3, 0.3]),
        ({"math.v2": [0.5, 0.6], "coding": 0.1}, [0.5, 0.6]),
    ],
)
def test_a_point_reaches_a_specialist_with_dots_in_its_name_and_layer_groups(value: Any, expected: list[float]) -> None:
    points = [{"scaling_coef": value}]
    methods = {"task_arithmetic": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 2}}}
    space = Space(make_sweep(methods, points_to_evaluate=points), ["math.v2", "coding"], LAYERS)
    (point,) = space.points(points)
    # Through Tune, which takes keys apart at "/".
    search = OptunaSearch(space.suggest, metric="m", mode="max", points_to_evaluate=[point])
    method, parameters = space.candidate(search.suggest("first"))
    assert (method, parameters["scaling_coef"]["math.v2"]) == ("task_arithmetic", expected)


def test_a_space_of_more_numbers_than_can_be_searched_is_refused_at_once() -> None:
    sweep = make_sweep({"ties": {"scaling_coef": {"low": 0, "high": 1, "per": "specialist", "layer_groups": 1000}}})
    with pytest.raises(InputError, match="1000000 numbers to search"):
        Space(sweep, [f"s{number}" for number in range(1000)], None)


def test_a_specialist_whose_name_tune_would_take_apart_is_refused() -> None:
    with pytest.raises(InputError, match="specialist 'me/math'"):
        Space(make_sweep({"model_soup": None, "ties": None}), ["me/math"], LAYERS)


@pytest.mark.parametrize(
    ("sampler", "options", "expected"),
    [
        ("TPESampler", {"n_startup_trials": "x"}, "n_startup_trials|not supported between"),
        ("TPESampler", {"n_ei_candidates": 0}, "must be positive"),
        ("TPESampler", {"n_ei_candidates": 10**9}, "n_ei_candidates = 1000000000"),
        ("TPESampler", {"seed": -1}, "Seed"),
        ("TPESampler", {"gamma": 3}, "not callable"),
        ("RandomSampler", {"seed": "x"}, "sampler_options"),
        ("CmaEsSampler", {"popsize": -1}, "popsize"),
        ("GridSampler", {}, "search_space"),
        ("GridSampler", {"search_space": {"x": [1]}}, "ties.density"),
        ("GridSampler", {"search_space": {str(i): list(range(100)) for i in range(20)}}, "to write down"),
        ("BruteForceSampler", {}, "step"),
        ("PartialFixedSampler", {}, "base_sampler"),
        ("BaseSampler", {}, "abstract"),
    ],
)
def test_an_option_that_a_sampler_would_only_stumble_over_later_is_refused(
    sampler: str, options: dict[str, Any], expected: str
) -> None:
    sweep = make_sweep({"ties": {"density": {"low": 0.1, "high": 0.5}}}, sampler=sampler, sampler_options=options)
    with pytest.raises(InputError, match=expected) as caught:
        try_sampler(sweep, Space(sweep, SPECIALISTS, LAYERS))
    assert "\n" not in str(caught.value)


def test_a_grid_can_be_walked_to_its_end() -> None:
    sweep = make_sweep(
        {"ties": {"density": {"low": 0.1, "high": 0.5}}},
        sampler="GridSampler",
        sampler_options={"search_space": {"ties.density": [0.1, 0.2, 0.3]}},
    )
    space = Space(sweep, SPECIALISTS, LAYERS)
    try_sampler(sweep, space)
    study = optuna.create_study(sampler=make_sampler("GridSampler", 0, sweep.search.sampler_options))
    for number in range(3):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, number)
    assert sorted(trial.params["ties.density"] for trial in study.trials) == [0.1, 0.2, 0.3]


def test_any_optuna_sampler_by_name_and_seeded() -> None:
    for name in ("TPESampler", "RandomSampler", "CmaEsSampler", "QMCSampler", "NSGAIISampler"):
        assert isinstance(make_sampler(name, 3, {}).made_of, getattr(optuna.samplers, name))
    first, second = (
        optuna.create_study(sampler=make_sampler("RandomSampler", 5, {})).ask().suggest_float("x", 0, 1) for _ in "ab"
    )
    assert first == second


def test_an_unknown_sampler_or_option_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'TPESampler'"):
        make_sampler("TPESampelr", 0, {})
    with pytest.raises(InputError, match="sampler_options"):
        make_sampler("TPESampler", 0, {"no_such_option": 1})
