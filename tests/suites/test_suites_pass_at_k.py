"""Unbiased pass@k: against counting every draw by hand, and what it refuses."""

from __future__ import annotations

from itertools import combinations
from statistics import mean

import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.suites.pass_at_k import pass_at_k


def naive_pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    samples = [True] * num_correct + [False] * (num_samples - num_correct)
    return mean(float(any(drawn)) for drawn in combinations(samples, k))


@pytest.mark.parametrize("num_samples", [1, 2, 5, 10])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            expected = naive_pass_at_k(num_samples, num_correct, k)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_the_share_of_right_samples() -> None:
    assert [pass_at_k(10, c, 1) for c in range(11)] == [c / 10 for c in range(11)]


def test_many_samples_neither_overflow_nor_round() -> None:
    assert pass_at_k(10_000, 0, 100) == 0.0
    assert pass_at_k(10_000, 9_901, 100) == 1.0
    assert pass_at_k(2_000, 1, 1_000) == 0.5


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k"), [(10, 11, 1), (10, -1, 1), (10, 5, 0), (10, 5, 11), (0, 0, 1)]
)
def test_impossible_counts_are_refused(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(InputError, match="pass@"):
        pass_at_k(num_samples, num_correct, k)
