from __future__ import annotations

from typing import Any

import optuna
import pytest

from mergebench_ray.config import Sweep
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError
from mergebench_ray.search.samplers import make_sampler
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
    ],
)
def test_a_space_that_no_method_accepts_is_refused(
    methods: dict[str, Any], search: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        make_space(methods, **search)
    assert "\n" not in str(caught.value)


def test_any_optuna_sampler_by_name_and_seeded() -> None:
    for name in ("TPESampler", "RandomSampler", "CmaEsSampler", "QMCSampler", "NSGAIISampler"):
        assert type(make_sampler(name, 3, {})).__name__ == name
    first, second = (
        optuna.create_study(sampler=make_sampler("RandomSampler", 5, {})).ask().suggest_float("x", 0, 1) for _ in "ab"
    )
    assert first == second


def test_an_unknown_sampler_or_option_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'TPESampler'"):
        make_sampler("TPESampelr", 0, {})
    with pytest.raises(InputError, match="sampler_options"):
        make_sampler("TPESampler", 0, {"no_such_option": 1})
