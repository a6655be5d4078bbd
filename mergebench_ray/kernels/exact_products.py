"""Inner products of bf16 vectors by additions of whole numbers, so that no order of additions changes a bit.

A block is scaled by its largest magnitude and cut into whole numbers of 17 bits and what is left, again of 17 bits.
Their products float64 adds up exactly over a block; sums of blocks are rounded once, by `math.fsum`. So Gram matrices
do not depend on shards, threads or processors, and what is below 2**-34 of a block's largest magnitude is all that
they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

INNER_PRODUCT_BLOCK = 1 << 16
"""Entries of a block, counted from the beginning of a tensor; its last block may be shorter."""

_BITS = 17
"""Of a whole number: two of them and the logarithm of a block's entries fit the 53 bits of float64."""


def inner_products(vectors: Sequence[Tensor]) -> Tensor:
    """Inner products of all pairs of vectors over one block.

    Args:
        vectors: M times finite bf16 [n], n at most `INNER_PRODUCT_BLOCK`.

    Returns:
        float64 [M, M] on the CPU, symmetric.
    """
    count = len(vectors)
    parts = torch.empty(2 * count, len(vectors[0]), dtype=torch.float64, device=vectors[0].device)
    whole, rest = parts[:count], parts[count:]
    for row, vector in zip(rest, vectors, strict=True):
        row.copy_(vector)
    # The power of two that a vector's largest magnitude is below, so that scaling rounds nothing.
    _, exponents = torch.frexp(rest.abs().amax(1))
    scales = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), _BITS - exponents)
    rest.mul_(scales[:, None])
    torch.round(rest, out=whole)
    rest.sub_(whole).mul_(2.0**_BITS).round_()
    products = parts @ parts.T
    mixed = products[:count, count:] + products[count:, :count]
    total = products[:count, :count] + mixed * 2.0**-_BITS + products[count:, count:] * 2.0 ** (-2 * _BITS)
    return (total / scales[:, None] / scales).cpu()


def sum_of_blocks(blocks: NDArray[Any]) -> list[list[float]]:
    """The sum of float64 matrices [blocks, M, M], each entry rounded once, so the same in whatever order they come."""
    rows = blocks.transpose(1, 2, 0).tolist()
    return [[math.fsum(entry) for entry in row] for row in rows]
