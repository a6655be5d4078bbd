"""Hyper-parameters: one canonical form for equal merges, one line for a wrong value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mergebench_ray.config.fields import MODULE_KINDS
from mergebench_ray.errors import InputError
from mergebench_ray.methods import (
    TensorPlace,
    complete_parameters,
    get_method,
    layer_group,
    method_names,
    parse_parameters,
    per_specialist,
)
from mergebench_ray.methods.dare_ties import DareTiesParameters
from mergebench_ray.methods.sce import SceParameters
from mergebench_ray.methods.task_arithmetic import TaskArithmeticParameters

NAMES = ["math", "coding"]


def complete(method: str, parameters: dict[str, Any], layers: int = 4) -> dict[str, Any]:
    return complete_parameters(method, parameters, NAMES, layers)


def test_defaults_are_the_published_ones() -> None:
    everyone = {"coding": 0.4, "math": 0.4}
    assert complete("model_soup", {}) == {}
    assert complete("task_arithmetic", {}) == {"scaling_coef": everyone}
    assert complete("ties", {}) == {"scaling_coef": everyone, "density": 0.2, "merge_func": "sum"}
    assert complete("dare", {}) == {"scaling_coef": everyone, "p": 0.9, "seed": 0}
    assert complete("consensus", {}) == {"scaling_coef": everyone, "mu": {"coding": 0.2, "math": 0.2}, "k": 2}
    assert complete("localize_and_stitch", {}) == {"sparsity": 0.1, "overlap": "paper"}


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        {"math": 0.5, "coding": 0.5},
        {"coding": [0.5, 0.5], "math": 0.5},
        {"math": [0.5], "coding": [0.5]},
        {"math": {"first": 0.5, "last": 0.5}, "coding": 0.5},
        {"math": {"attention": 0.5, "mlp": [0.5, 0.5], "norm": {"first": 0.5, "last": 0.5}}, "coding": 0.5},
        {"math": [0.5] * 4, "coding": [0.5] * 3},
    ],
)
def test_equal_merges_have_equal_parameters(value: Any) -> None:
    assert complete("task_arithmetic", {"scaling_coef": value}) == {"scaling_coef": {"coding": 0.5, "math": 0.5}}


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "sce"])
def test_equal_coefficients_of_all_specialists_together_are_one(method: str) -> None:
    for value in (0.5, [0.5], [0.5, 0.5], {"first": 0.5, "last": 0.5}):
        assert complete(method, {"scaling_coef": value})["scaling_coef"] == 0.5
    assert complete(method, {"scaling_coef": [0.1, 0.1, 0.9, 0.9]})["scaling_coef"] == [0.1, 0.9]
    assert json.dumps(complete(method, {"scaling_coef": -0.0})) == json.dumps(complete(method, {"scaling_coef": 0.0}))


def test_completed_parameters_complete_to_themselves() -> None:
    for method in method_names():
        specialists = get_method(method).Parameters.as_many(["coding", "math"])
        once = complete_parameters(method, {}, specialists, 4)
        assert complete_parameters(method, once, specialists, 4) == once


def test_layer_groups_stay_lists() -> None:
    completed = complete("task_arithmetic", {"scaling_coef": {"math": [0.1, 1], "coding": 0.3}})
    assert completed == {"scaling_coef": {"coding": 0.3, "math": [0.1, 1.0]}}


@pytest.mark.parametrize(
    ("numbers", "fewest"),
    [
        ([0.1, 0.1, 0.9, 0.9], [0.1, 0.9]),
        ([0.1, 0.1, 0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.1]),
        ([0.1, 0.9, 0.1, 0.9], [0.1, 0.9, 0.1, 0.9]),
        ([0.1, 0.1, 0.9], [0.1, 0.1, 0.9]),
    ],
)
def test_neighbouring_groups_with_one_number_are_one_group(numbers: list[float], fewest: list[float]) -> None:
    parameters = {"scaling_coef": {"math": numbers, "coding": {"attention": numbers, "mlp": numbers, "norm": 0.2}}}
    completed = complete("task_arithmetic", parameters, layers=7)["scaling_coef"]
    assert completed == {"math": fewest, "coding": {"attention": fewest, "mlp": fewest, "norm": 0.2}}
    for layer in (*range(7), None):
        places = [TensorPlace("x", layer, 7, kind=kind) for kind in MODULE_KINDS]
        assert [per_specialist(completed, place, NAMES) for place in places] == [
            per_specialist(parameters["scaling_coef"], place, NAMES) for place in places
        ]


def test_a_zero_has_no_sign_and_a_seed_of_nothing_dropped_is_none() -> None:
    zero = complete("task_arithmetic", {"scaling_coef": -0.0})
    assert json.dumps(zero) == json.dumps(complete("task_arithmetic", {"scaling_coef": {"math": [-0.0], "coding": 0}}))
    assert complete("dare", {"p": 0, "seed": 5}) == complete("dare", {"p": 0})
    assert complete("dare", {"p": 0.5, "seed": 5}) != complete("dare", {"p": 0.5})
    for method in ("della", "della_linear"):
        whole = {"density": {"math": 1.0, "coding": 1.0}, "seed": 5, "epsilon": 0.3}
        assert complete(method, whole) == complete(method, {"density": 1.0})
        assert complete(method, whole | {"density": {"math": 1.0, "coding": 0.9}})["seed"] == 5


def test_lines_stay_lines() -> None:
    completed = complete("ties", {"scaling_coef": {"math": {"last": 1, "first": 0.25}, "coding": 0.3}})
    assert completed["scaling_coef"] == {"coding": 0.3, "math": {"first": 0.25, "last": 1.0}}
    assert complete("ties", completed) == completed


def test_kinds_of_modules_stay_and_what_is_the_same_for_all_of_them_is_one() -> None:
    kinds = {"norm": [0.2, 0.2], "attention": [0.1, 1], "mlp": {"first": 0.25, "last": 1}}
    alike = {"norm": [0.1, 0.3], "attention": [0.1, 0.3], "mlp": [0.1, 0.3]}
    completed = complete("task_arithmetic", {"scaling_coef": {"math": kinds, "coding": alike}})
    expected = {"attention": [0.1, 1.0], "mlp": {"first": 0.25, "last": 1.0}, "norm": 0.2}
    assert completed["scaling_coef"] == {"coding": [0.1, 0.3], "math": expected}
    assert complete("task_arithmetic", completed) == completed


def test_a_tensor_has_the_number_of_its_kind_and_layer() -> None:
    kinds = {"attention": [0.1, 0.9], "mlp": {"first": 0.2, "last": 0.6}, "norm": 0.3}
    parsed = parse_parameters("task_arithmetic", {"scaling_coef": {"math": kinds}})
    assert isinstance(parsed, TaskArithmeticParameters)
    places = [TensorPlace("x", layer, 2, kind=kind) for kind in MODULE_KINDS for layer in (0, 1)]
    for values in (parsed.scaling_coef, {"math": kinds}):
        found = [number for place in places for number in per_specialist(values, place, ["math"])]
        assert found == pytest.approx([0.1, 0.9, 0.2, 0.6, 0.3, 0.3])


RULES = [{"filter": "mlp", "value": 0.5}, {"filter": "attn", "value": [0.0, 0.4, 1.0]}, {"value": [0.3, 0.9]}]


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("layers.0.mlp.up", 0, 0.5),
        ("layers.0.attn.q", 0, 0.0),
        ("layers.1.attn.q", 1, 0.2),
        ("layers.4.attn.q", 4, 1.0),
        ("layers.2.norm", 2, 0.6),
        ("norm", None, 0.3),
    ],
)
def test_the_first_rule_that_fits_a_name_counts_and_a_gradient_goes_through_its_numbers(
    name: str, layer: int | None, expected: float
) -> None:
    place = TensorPlace(name, layer, 5)
    parsed = parse_parameters("dare_linear", {"weight": {"math": RULES}, "density": {"math": RULES}})
    assert isinstance(parsed, DareTiesParameters)
    for values in (parsed.weight, parsed.density, {"math": RULES}):
        assert per_specialist(values, place, ["math"]) == pytest.approx([expected])
    whole = parse_parameters("sce", {"scaling_coef": RULES})
    assert isinstance(whole, SceParameters)
    assert per_specialist(whole.scaling_coef, place, [""]) == pytest.approx([expected])


def test_rules_are_as_few_as_say_the_same() -> None:
    plain = [{"filter": "mlp", "value": [0.5, 0.5]}, {"filter": "attn", "value": 0.2}, {"value": [0.2, 0.2]}, *RULES]
    completed = complete("ties", {"weight": {"math": RULES, "coding": plain}})["weight"]
    assert completed == {"coding": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}], "math": RULES}
    alike = {"math": [{"filter": "mlp", "value": 0.5}, {"value": [0.5]}], "coding": 0.5}
    assert complete("task_arithmetic", {"scaling_coef": alike}) == complete("task_arithmetic", {"scaling_coef": 0.5})


def test_what_is_the_same_for_all_specialists_is_one_number_and_what_is_switched_off_is_left_out() -> None:
    assert complete("ties", {"density": {"math": 0.3, "coding": 0.3}, "weight": 1.0, "rescale": False}) == complete(
        "ties", {"density": 0.3}
    )
    assert complete("ties", {"density": {"math": 0.3, "coding": 0.4}})["density"] == {"coding": 0.4, "math": 0.3}
    assert complete("breadcrumbs", {"gamma": {"math": 0.1, "coding": 0.1}}) == complete("breadcrumbs", {"gamma": 0.1})
    assert complete("della", {"epsilon": {"math": 0.1, "coding": 0.2}})["epsilon"] == {"coding": 0.2, "math": 0.1}
    assert complete("task_arithmetic", {"weight": 1, "normalize": False}) == complete("task_arithmetic", {})


@pytest.mark.parametrize(
    ("layer", "layers", "expected"), [(0, 5, 0.2), (1, 5, 0.3), (4, 5, 0.6), (None, 5, 0.6), (0, 1, 0.6)]
)
def test_a_line_goes_from_the_first_layer_to_the_last(layer: int | None, layers: int, expected: float) -> None:
    parsed = parse_parameters("task_arithmetic", {"scaling_coef": {"math": {"first": 0.2, "last": 0.6}, "coding": 0.3}})
    place = TensorPlace("x", layer, layers)
    assert isinstance(parsed, TaskArithmeticParameters)
    assert per_specialist(parsed.scaling_coef, place, ["coding", "math"]) == pytest.approx([0.3, expected])


@pytest.mark.parametrize(
    ("layer", "layers", "groups", "group"),
    [
        (0, 4, 2, 0),
        (1, 4, 2, 0),
        (2, 4, 2, 1),
        (3, 4, 2, 1),
        (7, 30, 4, 0),
        (8, 30, 4, 1),
        (29, 30, 4, 3),
        (None, 4, 3, 2),
    ],
)
def test_layers_fall_into_even_groups(layer: int | None, layers: int, groups: int, group: int) -> None:
    assert layer_group(TensorPlace("x", layer, layers), groups) == group


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {"density": 0}, "density = 0"),
        ("ties", {"density": 1.5}, "density = 1.5"),
        ("ties", {"density": True}, "density = True"),
        ("task_arithmetic", {"scaling_coef": {"math": [0.1, False], "coding": 0.2}}, "holds true or false"),
        ("ties", {"densty": 0.5}, "did you mean 'density'"),
        ("ties", {"merge_func": "median"}, "merge_func = 'median'"),
        ("task_arithmetic", {"scaling_coef": 3.5}, "scaling_coef"),
        ("task_arithmetic", {"scaling_coef": float("nan")}, "scaling_coef"),
        ("task_arithmetic", {"scaling_coef": {"math": 0.1}}, "coding"),
        ("task_arithmetic", {"scaling_coef": {"math": 0.1, "coding": 0.2, "law": 0.3}}, "law"),
        ("task_arithmetic", {"scaling_coef": {"math": [0.1] * 5, "coding": 0.2}}, "5 layer groups"),
        ("iso_c", {"scaling_coef": [0.1] * 5}, "scaling_coef has 5 layer groups, but the model has 4 layers"),
        ("sce", {"scaling_coef": [0.1] * 5}, "scaling_coef has 5 layer groups, but the model has 4 layers"),
        ("task_arithmetic", {"scaling_coef": {"math": [], "coding": 0.2}}, "scaling_coef"),
        ("task_arithmetic", {"scaling_coef": {"math": {"first": 0.1}, "coding": 0.2}}, "scaling_coef"),
        ("task_arithmetic", {"scaling_coef": {"math": {"first": 0.1, "last": 4}, "coding": 0.2}}, "scaling_coef"),
        (
            "ties",
            {"scaling_coef": {"math": {"atention": 0.1, "mlp": 0.2, "norm": 0.3}, "coding": 0.2}},
            "scaling_coef.math = {'atention': 0.1, 'mlp': 0.2, 'norm': 0.3}: unknown kind of module 'atention'; "
            "did you mean 'attention'?",
        ),
        ("ties", {"scaling_coef": {"math": {"mlp": 0.2, "norm": 0.3}, "coding": 0.2}}, "missing: attention"),
        ("ties", {"scaling_coef": {"math": {"attention": 0.1, "mlp": 7, "norm": 0}, "coding": 0.2}}, "math.mlp = 7"),
        (
            "ties",
            {"scaling_coef": {"math": {"attention": [0.1] * 5, "mlp": 0.2, "norm": 0.3}, "coding": 0.2}},
            "5 layer groups",
        ),
        (
            "ties",
            {"weight": {"math": [{"filter": "mlp", "value": 0.1}], "coding": 1}},
            "add {value: NUMBER} at the end",
        ),
        ("ties", {"weight": {"math": [{"fliter": "mlp", "value": 0.1}], "coding": 1}}, "fliter"),
        ("ties", {"weight": {"math": [{"value": 7}], "coding": 1}}, "weight.math.0.value = 7"),
        ("ties", {"density": {"math": [0.1, 0.2], "coding": 1}}, "a list of {filter, value}"),
        ("ties", {"density": {"math": RULES, "coding": 1}}, "density is of each tensor by itself here"),
        ("ties", {"rescale": True}, "rescale is of each tensor by itself here, which needs trim: tensor"),
        ("sce", {"scaling_coef": {"a": 1}}, "or a list of {filter, value}"),
        ("dare", {"p": 1.0}, "p = 1.0"),
        ("dare", {"seed": -1}, "seed = -1"),
        ("consensus", {"k": 3}, "k = 3"),
        ("consensus", {"k": 0}, "k = 0"),
        ("consensus", {"mu": -0.1}, "mu"),
        ("localize_and_stitch", {"sparsity": 0}, "sparsity = 0"),
        ("model_soup", {"scaling_coef": 0.4}, "unknown key 'scaling_coef'"),
    ],
)
def test_a_wrong_value_is_one_line_with_method_key_and_rule(
    method: str, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        complete(method, parameters)
    assert method in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_answered_with_the_closest() -> None:
    with pytest.raises(InputError, match="unknown method 'tie'; did you mean 'ties'"):
        get_method("tie")
    with pytest.raises(InputError, match=r"known: .*dare, .*, \.\.\.$"):
        get_method("zzz")


@pytest.mark.parametrize(
    ("method", "specialists", "wanted"),
    [
        ("slerp", ["a", "b"], "merges exactly 1 specialist, not 2"),
        ("nuslerp", ["a"], "merges exactly 2 specialists, not 1"),
        ("model_stock", ["a"], "merges at least 2 specialists, not 1"),
    ],
)
def test_a_method_says_how_many_specialists_it_merges(method: str, specialists: list[str], wanted: str) -> None:
    with pytest.raises(InputError, match=f"{method}: {wanted}"):
        complete_parameters(method, {}, specialists, 4)


@pytest.mark.parametrize("method", ["linear", "multislerp"])
def test_weights_that_add_up_to_nothing_are_refused_with_the_tensor(method: str) -> None:
    parameters = parse_parameters(method, {"weight": {"a": 0.5, "b": -0.5}})
    products = {"w": [[1.0, 0.1, 0.2], [0.1, 1.0, 0.3], [0.2, 0.3, 1.0]]}
    with pytest.raises(InputError, match="the weights of w add up to 0"):
        get_method(method).scalars(parameters, products, TensorPlace("w", 0, 4), ["a", "b"])


@pytest.mark.parametrize("rules", [[{"value": 0.0}], [{"filter": "mlp", "value": 0}, {"value": [0, 0.0]}]])
def test_densities_of_rules_that_keep_nothing_are_refused_where_they_are_written(rules: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"density\.math.*gives 0 everywhere"):
        complete_parameters("ties", {"density": {"math": rules, "code": 0.5}}, ["code", "math"], 4)
