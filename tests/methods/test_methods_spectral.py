"""Methods that merge singular vectors, on matrices that are small or odd beside the number of specialists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergebench_ray.methods.iso_cts import IsoCtsTransform


def random_vectors(rows: int, columns: int, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(0.01 * (k + 1) * torch.randn(rows, columns, generator=generator)).bfloat16() for k in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "count"), [(2, 5), (3, 5), (8, 5), (8, 3), (64, 5), (20, 4)])
def test_iso_cts_has_as_many_directions_as_there_are_and_all_of_one_length(
    rows: int, count: int, fraction: float
) -> None:
    (new,) = IsoCtsTransform(fraction).of(random_vectors(rows, 96, count))
    lengths = torch.linalg.svdvals(new)
    torch.testing.assert_close(lengths, lengths.mean().expand(rows), rtol=1e-4, atol=0)
