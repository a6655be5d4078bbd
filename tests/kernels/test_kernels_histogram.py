"""Thresholds from the histogram are exact: what a sort over all magnitudes would give."""

from __future__ import annotations

import pytest
import torch

from mergebench_ray.kernels import MAGNITUDES, kth_smallest_magnitude, magnitude_histogram


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    """Many sizes, signs, ties, denormals and both zeros."""
    numbers = torch.randn(50_001, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.randint(-39, 3, (50_001,))
    numbers[:7000] = 0.25
    numbers[7000:9000] = -0.0
    return numbers.bfloat16()


def test_every_rank_gives_the_magnitude_that_sorting_gives(values: torch.Tensor) -> None:
    histogram = magnitude_histogram(values)
    ordered = values.float().abs().sort().values
    for rank in [1, 2, 1999, 2000, 2001, 25_000, 50_000, 50_001]:
        assert kth_smallest_magnitude(histogram, rank) == ordered[rank - 1].item()


def test_rank_zero_is_below_every_magnitude(values: torch.Tensor) -> None:
    assert kth_smallest_magnitude(magnitude_histogram(values), 0) == 0.0


def test_histograms_of_parts_add_up(values: torch.Tensor) -> None:
    whole = magnitude_histogram(values)
    assert torch.equal(whole, magnitude_histogram(values[:12_345]) + magnitude_histogram(values[12_345:]))
    assert whole.shape == (MAGNITUDES,)
    assert int(whole.sum()) == len(values)


def test_nothing_has_an_empty_histogram() -> None:
    assert int(magnitude_histogram(torch.empty(0, dtype=torch.bfloat16)).sum()) == 0
