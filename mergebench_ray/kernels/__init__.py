"""Element-wise passes over flat parameters: written once per method, run compiled or eagerly with equal bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.kernels.block import Block, BlockFunction, Scalars
    from mergebench_ray.kernels.compiled import warn_not_compiled
    from mergebench_ray.kernels.histogram import MAGNITUDES, kth_smallest_magnitude, magnitude_histogram
    from mergebench_ray.kernels.passes import Pass, Segment
    from mergebench_ray.kernels.random import random_numbers, scramble, specialist_key, tensor_keys, threshold_of

__all__ = [
    "MAGNITUDES",
    "Block",
    "BlockFunction",
    "Pass",
    "Scalars",
    "Segment",
    "kth_smallest_magnitude",
    "magnitude_histogram",
    "random_numbers",
    "scramble",
    "specialist_key",
    "tensor_keys",
    "threshold_of",
    "warn_not_compiled",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Block": "block",
        "BlockFunction": "block",
        "MAGNITUDES": "histogram",
        "Pass": "passes",
        "Scalars": "block",
        "Segment": "passes",
        "kth_smallest_magnitude": "histogram",
        "magnitude_histogram": "histogram",
        "random_numbers": "random",
        "scramble": "random",
        "specialist_key": "random",
        "tensor_keys": "random",
        "threshold_of": "random",
        "warn_not_compiled": "compiled",
    },
)
