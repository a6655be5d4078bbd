"""The random numbers of masks: right rates, and nothing to be seen between neighbours, specialists, tensors, seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mergebench_ray.kernels.random import random_numbers, scramble, specialist_key, tensor_keys, threshold_of

COUNT = 1 << 21


def numbers(
    seed: int = 1, tensor: str = "w", part: int = 0, specialist: str = "math", *, position: torch.Tensor | None = None
) -> torch.Tensor:
    """What a specialist's mask is drawn from."""
    position = torch.arange(COUNT, dtype=torch.int32) if position is None else position
    scrambled = scramble(position, torch.tensor(tensor_keys(seed, tensor, part), dtype=torch.int32))
    key = torch.tensor(specialist_key(seed, tensor, part, specialist), dtype=torch.int32)
    return random_numbers(scrambled, key)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.8, 0.9, 0.99])
def test_the_drop_rate_is_the_probability(probability: float) -> None:
    for seed in range(4):
        dropped = int((numbers(seed) < threshold_of(probability)).sum())
        deviation = (dropped - COUNT * probability) / math.sqrt(COUNT * probability * (1 - probability))
        assert abs(deviation) < 4.5


def test_numbers_stay_in_their_range() -> None:
    drawn = numbers(position=torch.arange((1 << 30) - COUNT, 1 << 30, dtype=torch.int32))
    assert float(drawn.min()) >= threshold_of(0.0)
    assert float(drawn.max()) <= threshold_of(1.0)


def test_every_byte_is_even() -> None:
    counts = torch.histc(numbers().double() / 2**32 + 0.5, bins=256, min=0, max=1)
    assert_even(counts)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 576, 1536, 4096, 1 << 14, 1 << 16, 1 << 18, 1 << 20])
def test_neighbours_are_independent(lag: int) -> None:
    for probability in (0.5, 0.9):
        dropped = numbers(seed=2) < threshold_of(probability)
        assert_independent(dropped[lag:], dropped[:-lag], probability)


@pytest.mark.parametrize(
    "other", [{"seed": 0}, {"tensor": "v"}, {"part": 1}, {"specialist": "coding"}, {"specialist": "safety"}]
)
def test_seeds_tensors_parts_and_specialists_are_independent(other: dict[str, Any]) -> None:
    for probability in (0.5, 0.9):
        first, second = (numbers(**which) < threshold_of(probability) for which in ({}, other))
        assert_independent(first, second, probability)
        assert_independent(first[1:], second[:-1], probability)


def test_any_two_of_many_specialists_are_independent() -> None:
    masks = [numbers(specialist=f"specialist {k}") < threshold_of(0.5) for k in range(12)]
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert_independent(mask, other, 0.5)


@pytest.mark.parametrize("tensor", ["v", "w", "x", "y", "z"])
def test_what_five_specialists_drop_is_independent(tensor: str) -> None:
    masks = [numbers(tensor=tensor, specialist=f"specialist {k}") < threshold_of(0.5) for k in range(5)]
    patterns = sum(mask.long() << k for k, mask in enumerate(masks))
    assert isinstance(patterns, torch.Tensor)
    # With each position's pattern the next one's: 1024 patterns.
    assert_even(torch.bincount(patterns[:-1] << 5 | patterns[1:], minlength=1024).double())


@pytest.mark.parametrize("bit", range(21, 30))
def test_high_bits_of_the_position_count(bit: int) -> None:
    position = torch.arange(COUNT, dtype=torch.int32)
    first, second = (numbers(position=p) < threshold_of(0.5) for p in (position, position ^ (1 << bit)))
    assert_independent(first, second, 0.5)


def test_a_number_depends_on_its_position_alone() -> None:
    position = torch.arange(1000, 6000, dtype=torch.int32)
    assert torch.equal(numbers(position=position)[123:], numbers(position=position[123:]))


def assert_even(counts: torch.Tensor) -> None:
    """Chi squared within five standard deviations of its mean."""
    expected, freedom = float(counts.sum()) / len(counts), len(counts) - 1
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def assert_independent(first: torch.Tensor, second: torch.Tensor, probability: float) -> None:
    together = int((first & second).sum())
    spread = math.sqrt(len(first)) * probability * (1 - probability)
    # Both margins vary too; taking the observed ones leaves only the dependence.
    expected = int(first.sum()) * int(second.sum()) / len(first)
    assert abs(together - expected) < 5 * spread
