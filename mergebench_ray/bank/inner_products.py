"""Inner products of base and task vectors, tensor by tensor, whoever holds which part of a tensor.

A tensor is cut into blocks counted from its beginning. The products of a block are made where it begins, of all of its
entries, so that they are the same wherever tensors are cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mergebench_ray.bank.layout import Overlap
from mergebench_ray.kernels import INNER_PRODUCT_BLOCK, sum_of_blocks
from mergebench_ray.methods import InnerProducts

Products = list[tuple[str, NDArray[Any]]]
"""Name of a tensor, and the products of some of its blocks, float64 [blocks, K + 1, K + 1]."""


def products_of(overlaps: Iterable[Overlap], multiply: Callable[[Overlap], Tensor]) -> Products:
    """Products of the blocks that begin in what a range holds of tensors.

    Args:
        overlaps: what it holds.
        multiply: gives the `inner_products` of base and task vectors of a block.
    """
    found = []
    for overlap in overlaps:
        products = [multiply(block).numpy() for block in _blocks_beginning_in(overlap)]
        if products:
            found.append((overlap.tensor.name, np.stack(products)))
    return found


def products_by_tensor(found: Iterable[Products]) -> dict[str, InnerProducts]:
    """Products of whole tensors from those of all blocks, in whatever order they come."""
    blocks: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for products in found:
        for name, some in products:
            blocks[name].append(some)
    return {name: sum_of_blocks(np.concatenate(some)) for name, some in blocks.items()}


def _blocks_beginning_in(overlap: Overlap) -> Iterator[Overlap]:
    """The blocks that begin in what a range holds of a tensor; the last may reach beyond the range."""
    tensor = overlap.tensor
    first = overlap.position + -overlap.position % INNER_PRODUCT_BLOCK
    for start in range(tensor.start + first, overlap.stop, INNER_PRODUCT_BLOCK):
        yield Overlap(tensor, start, min(start + INNER_PRODUCT_BLOCK, tensor.stop))
