"""Coefficients that follow from the task vectors' sizes, before anything is scored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mergebench_ray.config import Sweep
from mergebench_ray.kernels.histogram import magnitude_histogram, norms
from mergebench_ray.search.space import Space
from mergebench_ray.search.starts import kappa, metagpt, starts

SIZES = {"coding": 1.0, "law": 1.0, "math": 2.0}
EACH = {"low": 0.0, "high": 1.0, "per": "specialist"}


def found(methods: dict[str, Any], sizes: dict[str, float] = SIZES, **search: Any) -> dict[str, dict[str, Any]]:
    search = {"trials": 40} | search
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    return starts(sweep, Space(sweep, list(sizes), None), sizes)


def test_sizes_come_from_exact_histograms() -> None:
    vectors = torch.randn(2, 1000).bfloat16()
    counted = torch.stack([magnitude_histogram(vector) for vector in vectors])
    assert norms(counted) == pytest.approx(vectors.double().norm(dim=1).tolist())


def test_metagpt_weighs_by_squared_size_and_sums_to_one() -> None:
    assert metagpt(SIZES) == pytest.approx({"coding": 1 / 6, "law": 1 / 6, "math": 4 / 6})
    assert metagpt({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([1.0, 1.0], 1.15), ([1.0, 3.5], 1.15), ([1.0, 16.0], 0.5), ([1.0, 50.0], 0.5), ([0.0, 1.0], 0.5)],
)
def test_kappa_is_smaller_where_task_vectors_are_less_alike(sizes: list[float], expected: float) -> None:
    assert kappa(sizes) == pytest.approx(expected / math.sqrt(2))
    assert 0.5 < kappa([1.0, 7.0]) * math.sqrt(2) < 1.15


def test_every_rule_gives_a_candidate_of_task_arithmetic_alone() -> None:
    candidates = found({"ties": {"scaling_coef": EACH}, "task_arithmetic": {"scaling_coef": EACH}})
    assert [*candidates] == ["metagpt", "kappa", "usual", "average"]
    for name, value in {"kappa": 1.15 / math.sqrt(3), "usual": 0.4, "average": 1 / 3}.items():
        assert candidates[name]["method"] == "task_arithmetic"
        numbers = [one for key, one in candidates[name].items() if key != "method"]
        assert numbers == pytest.approx([value] * 3)


def test_what_lies_outside_the_searched_range_is_cut_off_and_nothing_comes_twice() -> None:
    candidates = found({"task_arithmetic": {"scaling_coef": EACH | {"low": 0.5}}})
    numbers = [tuple(one.values()) for one in candidates.values()]
    assert numbers == [(0.5, 0.5, pytest.approx(4 / 6)), (pytest.approx(1.15 / math.sqrt(3)),) * 3, (0.5, 0.5, 0.5)]


def test_one_number_for_all_follows_from_the_rules_that_give_one() -> None:
    candidates = found({"task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.0}}})
    assert [*candidates] == ["kappa", "usual", "average"]


def test_each_group_of_layers_gets_its_specialists_number() -> None:
    candidates = found({"task_arithmetic": {"scaling_coef": EACH | {"layer_groups": 2}}})
    keys = [f"task_arithmetic.scaling_coef.{name}.{group}" for name in SIZES for group in (0, 1)]
    assert candidates["usual"] == dict.fromkeys(keys, 0.4)


def test_what_else_is_searched_begins_at_its_default() -> None:
    candidates = found({"dare": {"scaling_coef": EACH, "p": {"low": 0.1, "high": 0.5}, "seed": 3}})
    assert {one["dare.p"] for one in candidates.values()} == {0.5}


def test_a_point_of_the_sweep_is_not_proposed_again() -> None:
    point = {"method": "task_arithmetic", "scaling_coef": 0.4}
    candidates = found({"task_arithmetic": {"scaling_coef": EACH}}, points_to_evaluate=[point])
    assert "usual" not in candidates


@pytest.mark.parametrize(("trials", "count"), [(4, 0), (5, 1), (14, 2), (20, 4), (100, 4)])
def test_one_candidate_in_five_at_most_is_such_a_one(trials: int, count: int) -> None:
    assert len(found({"task_arithmetic": {"scaling_coef": EACH}}, trials=trials)) == count


@pytest.mark.parametrize("coefficient", [0.4, {"choices": [0.3, 0.5]}])
def test_where_no_coefficient_has_a_range_there_are_none(coefficient: Any) -> None:
    assert found({"task_arithmetic": {"scaling_coef": coefficient}, "ties": {"scaling_coef": EACH}}) == {}
