"""A group's score beside lm-eval's own, and beside what rows of its items come to."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from lm_eval.api.group import Group

from mergebench_ray.evaluation.estimates import Estimate, estimate_aggregate, estimate_mean
from mergebench_ray.evaluation.group_scores import Part, pooled
from mergebench_ray.scores import TaskScore

VALUES = {"a": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "b": [0.0, 1.0], "c": [1.0, 0.0, 0.0]}
CLUSTERS = {name: [f"{name}{place}" for place in range(len(values))] for name, values in VALUES.items()}


class Named:
    """All that lm-eval's group wants of a task."""

    def __init__(self, name: str) -> None:
        self.task_name = name


def part(name: str, estimate: Estimate, one_minus: bool = False, *, mean: bool = True) -> Part:
    score = TaskScore(name, "m", estimate.value, estimate.standard_error, len(VALUES[name]), one_minus, group="g")
    counted = estimate.turned() if one_minus else estimate
    return Part(score, counted, (VALUES[name], CLUSTERS[name]) if mean else None)


def of_lm_eval(parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    group = Group.from_config({"group": "g", "aggregate_metric_list": [{"metric": "m"}]})
    monkeypatch.setattr(group, "get_all_tasks", lambda: [Named(one.score.task) for one in parts])
    metrics: Any = {
        one.score.task: {"sample_len": one.score.items, "m,none": one.score.value, "m_stderr,none": 0.1}
        for one in parts
    }
    return cast(dict[str, Any], group.aggregate(metrics))


@pytest.mark.parametrize("one_minus", [False, True])
def test_a_mean_is_lm_evals_and_that_of_all_items_with_its_error(
    one_minus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part(name, estimate_mean(VALUES[name], CLUSTERS[name]), one_minus) for name in VALUES]
    whole, counted = pooled("g", parts)
    assert whole.value == pytest.approx(of_lm_eval(parts, monkeypatch)["m,none"])
    values = [value for some in VALUES.values() for value in some]
    together = estimate_mean(values, [cluster for some in CLUSTERS.values() for cluster in some])
    assert (whole.value, whole.standard_error) == pytest.approx((together.value, together.standard_error))
    assert whole.score == counted.value == pytest.approx(1 - together.value if one_minus else together.value)
    assert (whole.task, whole.items) == ("g", 11)


def test_what_is_no_mean_over_items_is_lm_evals_mean_by_numbers_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    def most(values: Any) -> float:
        return math.exp(sum(values) / len(values))

    parts = [part(name, estimate_aggregate(most, VALUES[name], CLUSTERS[name]), mean=False) for name in VALUES]
    whole, _ = pooled("g", parts)
    assert whole.value == pytest.approx(of_lm_eval(parts, monkeypatch)["m,none"])
    errors = [one.score.standard_error * one.score.items / 11 for one in parts]
    assert whole.standard_error == pytest.approx(math.hypot(*errors))
