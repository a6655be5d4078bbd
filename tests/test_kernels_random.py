"""The random numbers of masks: right rates, and nothing to be seen between neighbours, specialists, tensors, seeds."""

from __future__ import annotations

import math

import pytest
import torch

from mergebench_ray.kernels.random import random_below, stream_keys, threshold_of

COUNT = 1 << 21


def numbers(*parts: object, start: int = 0, count: int = COUNT) -> torch.Tensor:
    keys = torch.tensor(stream_keys(*parts), dtype=torch.int32)
    return random_below(torch.arange(start, start + count, dtype=torch.int32), list(keys))


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.8, 0.9, 0.99])
def test_the_drop_rate_is_the_probability(probability: float) -> None:
    for seed in range(4):
        dropped = int((numbers(seed, "math", "model.norm.weight", 0) < threshold_of(probability)).sum())
        deviation = (dropped - COUNT * probability) / math.sqrt(COUNT * probability * (1 - probability))
        assert abs(deviation) < 4.5


def test_numbers_stay_in_their_range() -> None:
    drawn = numbers(5, "a", "b", 0, start=(1 << 30) - COUNT)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < threshold_of(1.0) + (1 << 15)


def test_every_byte_is_even() -> None:
    drawn = numbers(1, "a", "b", 0).double() / threshold_of(1.0)
    counts = torch.histc(drawn, bins=256, min=0, max=1)
    chi_squared = float(((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum())
    assert abs(chi_squared - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 576, 1536, 4096, 1 << 14, 1 << 16, 1 << 18, 1 << 20])
def test_neighbours_are_independent(lag: int) -> None:
    for probability in (0.5, 0.9):
        dropped = numbers(2, "math", "model.layers.0.mlp.up_proj.weight", 0) < threshold_of(probability)
        assert_independent(dropped[lag:], dropped[:-lag], probability)


@pytest.mark.parametrize(
    "other", [(0, "math", "w", 0), (1, "coding", "w", 0), (1, "math", "v", 0), (1, "math", "w", 1)]
)
def test_seeds_specialists_tensors_and_parts_are_independent(other: tuple[object, ...]) -> None:
    for probability in (0.5, 0.9):
        first, second = (numbers(*parts) < threshold_of(probability) for parts in ((1, "math", "w", 0), other))
        assert_independent(first, second, probability)


@pytest.mark.parametrize("bit", range(21, 30))
def test_high_bits_of_the_position_count(bit: int) -> None:
    keys = list(torch.tensor(stream_keys(4, "math", "w", 0), dtype=torch.int32))
    position = torch.arange(COUNT, dtype=torch.int32)
    first, second = (random_below(p, keys) < threshold_of(0.5) for p in (position, position ^ (1 << bit)))
    assert_independent(first, second, 0.5)


def test_one_number_depends_on_its_position_alone() -> None:
    assert torch.equal(numbers("s", start=1000, count=5000)[123:], numbers("s", start=1123, count=4877))


def assert_independent(first: torch.Tensor, second: torch.Tensor, probability: float) -> None:
    together = int((first & second).sum())
    spread = math.sqrt(len(first)) * probability * (1 - probability)
    # Both margins vary too; taking the observed ones leaves only the dependence.
    expected = int(first.sum()) * int(second.sum()) / len(first)
    assert abs(together - expected) < 5 * spread
