"""Inner products are those of the numbers themselves, to the last bits, in whatever order they are added up."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from mergebench_ray.kernels import INNER_PRODUCT_BLOCK, inner_products, sum_of_blocks


def vectors(count: int, entries: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(count, entries, generator=generator)
    return (ordinary * torch.tensor([1.0, 1e-3, 30.0])[:count, None]).bfloat16()


def test_products_are_those_of_fractions() -> None:
    some = vectors(3, 1000)
    exact = [[sum(Fraction(x) * Fraction(y) for x, y in zip(a, b)) for b in some.tolist()] for a in some.tolist()]
    found = inner_products(some.unbind()).tolist()
    sizes = [float(exact[k][k]) ** 0.5 for k in range(3)]
    for i, row in enumerate(found):
        assert row == [column[i] for column in found]
        for j, product in enumerate(row):
            assert abs(product - float(exact[i][j])) <= 1e-9 * sizes[i] * sizes[j]


def test_a_vector_of_zeros_has_products_of_zero() -> None:
    assert inner_products([torch.zeros(5, dtype=torch.bfloat16), torch.ones(5, dtype=torch.bfloat16)]).tolist() == [
        [0.0, 0.0],
        [0.0, 5.0],
    ]


def test_the_order_of_entries_changes_no_bit() -> None:
    some = vectors(3, INNER_PRODUCT_BLOCK)
    mixed = some[:, torch.randperm(INNER_PRODUCT_BLOCK, generator=torch.Generator().manual_seed(1))]
    expected = inner_products(some.unbind())
    assert torch.equal(inner_products(mixed.unbind()), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(inner_products(some.unbind()), expected)
    finally:
        torch.set_num_threads(threads)


def test_the_order_of_blocks_changes_no_bit() -> None:
    blocks = np.stack([inner_products(part.unbind()).numpy() for part in vectors(3, 40_000).split(999, dim=1)])
    assert sum_of_blocks(blocks) == sum_of_blocks(blocks[::-1])
