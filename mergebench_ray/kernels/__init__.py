"""Element-wise passes over flat parameters: written once per method, run compiled or eagerly with equal bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.kernels.block import Block, BlockFunction, Scalars
    from mergebench_ray.kernels.compiled import warn_not_compiled
    from mergebench_ray.kernels.exact_products import INNER_PRODUCT_BLOCK, inner_products, sum_of_blocks
    from mergebench_ray.kernels.histogram import (
        MAGNITUDES,
        Magnitudes,
        kth_smallest_magnitude,
        magnitude_histogram,
        rounds_to,
    )
    from mergebench_ray.kernels.passes import Pass, Segment
    from mergebench_ray.kernels.random import random_numbers, scramble, specialist_key, tensor_keys, threshold_of

__all__ = [
    "INNER_PRODUCT_BLOCK",
    "MAGNITUDES",
    "Block",
    "BlockFunction",
    "Magnitudes",
    "Pass",
    "Scalars",
    "Segment",
    "inner_products",
    "kth_smallest_magnitude",
    "magnitude_histogram",
    "random_numbers",
    "rounds_to",
    "scramble",
    "specialist_key",
    "sum_of_blocks",
    "tensor_keys",
    "threshold_of",
    "warn_not_compiled",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Block": "block",
        "BlockFunction": "block",
        "INNER_PRODUCT_BLOCK": "exact_products",
        "MAGNITUDES": "histogram",
        "Magnitudes": "histogram",
        "Pass": "passes",
        "Scalars": "block",
        "Segment": "passes",
        "inner_products": "exact_products",
        "kth_smallest_magnitude": "histogram",
        "magnitude_histogram": "histogram",
        "random_numbers": "random",
        "rounds_to": "histogram",
        "scramble": "random",
        "specialist_key": "random",
        "sum_of_blocks": "exact_products",
        "tensor_keys": "random",
        "threshold_of": "random",
        "warn_not_compiled": "compiled",
    },
)
