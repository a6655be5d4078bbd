"""Element-wise passes over flat parameters: written once per method, run compiled or eagerly with equal bits."""

from __future__ import annotations

from mergebench_ray.kernels.block import Block, BlockFunction, Scalars, keep_where
from mergebench_ray.kernels.compiled import warn_not_compiled
from mergebench_ray.kernels.histogram import MAGNITUDES, kth_smallest_magnitude, magnitude_histogram
from mergebench_ray.kernels.passes import Pass, Segment

__all__ = [
    "MAGNITUDES",
    "Block",
    "BlockFunction",
    "Pass",
    "Scalars",
    "Segment",
    "keep_where",
    "kth_smallest_magnitude",
    "magnitude_histogram",
    "warn_not_compiled",
]
