from __future__ import annotations

import math

import pytest

from mergebench_ray.runs.forgetting import retained_average
from mergebench_ray.scores import DomainScore


def test_what_is_retained_is_measured_against_the_base_with_both_errors() -> None:
    base = {"mmlu": DomainScore(0.5, 0.02, 100), "coqa": DomainScore(0.8, 0.01, 100)}
    scores = {"mmlu": DomainScore(0.4, 0.02, 100), "coqa": DomainScore(0.88, 0.01, 100)}
    value, error = retained_average(scores, base)
    assert value == pytest.approx((0.8 + 1.1) / 2)
    expected = math.hypot(math.hypot(0.02, 0.8 * 0.02) / 0.5, math.hypot(0.01, 1.1 * 0.01) / 0.8) / 2
    assert error == pytest.approx(expected)


def test_nothing_is_said_of_what_is_retained_where_the_base_scored_nothing() -> None:
    scores = {"mmlu": DomainScore(0.4, 0.02, 100)}
    assert retained_average(scores, {"mmlu": DomainScore(0.0, 0.0, 100)}) == (None, None)
