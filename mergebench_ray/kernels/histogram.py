"""Exact global thresholds: a bf16 magnitude has 15 bits, so 32,768 bins count every distinct value.

One streaming pass per specialist replaces a sort over the whole model, the counts of shards simply add up, and the
threshold of every density follows from one cumulative sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAGNITUDES = 1 << 15
"""Number of distinct bf16 magnitudes, infinities and NaNs included."""

_CPU_BLOCK = 1 << 18
"""Entries that are counted at a time, so that they stay in the cache."""

_GPU_BLOCK = 1 << 24
"""Counting makes the host wait for the GPU, whatever the size."""


def magnitude_histogram(values: Tensor) -> Tensor:
    """Count each magnitude.

    Args:
        values: bf16 [n].

    Returns:
        int64 [32768] on the CPU; entry b counts the values whose bit pattern without the sign is b.
    """
    counts = torch.zeros(MAGNITUDES, dtype=torch.int64, device=values.device)
    for block in values.split(_CPU_BLOCK if values.device.type == "cpu" else _GPU_BLOCK):
        counts += torch.bincount(magnitude_bits(block), minlength=MAGNITUDES)
    return counts.cpu()


def magnitude_bits(values: Tensor) -> Tensor:
    """Bit patterns without the sign, int16 [n]; they order like the magnitudes they stand for."""
    return values.view(torch.int16).bitwise_and(0x7FFF)


@dataclass(frozen=True)
class Magnitudes:
    """A histogram without its empty bins: those of a tensor are a hundredth of all.

    Attributes:
        bits: the magnitudes that occur, as bit patterns, uint16 [m], ascending.
        counts: how often each does, int64 [m].
    """

    bits: NDArray[np.uint16]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: Tensor) -> Magnitudes:
        """Count bf16 [n]."""
        histogram = magnitude_histogram(values).numpy()
        (bits,) = histogram.nonzero()
        return cls(bits.astype(np.uint16), histogram[bits])

    @classmethod
    def together(cls, parts: Sequence[Magnitudes]) -> Magnitudes:
        """Those of several parts of a tensor, in whatever order they come."""
        if len(parts) == 1:
            return parts[0]
        total = np.zeros(MAGNITUDES, dtype=np.int64)
        for part in parts:
            total[part.bits] += part.counts
        (bits,) = total.nonzero()
        return cls(bits.astype(np.uint16), total[bits])

    @property
    def num_entries(self) -> int:
        """How many entries were counted."""
        return int(self.counts.sum())

    def kth_smallest(self, rank: int) -> float:
        """The magnitude at a rank of the sorted ones, 1-based; 0 gives 0.0. A bf16 number, exactly."""
        if rank <= 0:
            return 0.0
        return float(self._values[np.searchsorted(self.counts.cumsum(), rank)])

    def count_above(self, least: float) -> int:
        """How many are larger than a number, in float32."""
        return int(self.counts[self._values > np.float32(least)].sum())

    def mean_square(self) -> float:
        """Mean of their squares, rounded once."""
        return math.fsum((self._values**2 * self.counts).tolist()) / self.num_entries

    def sum_between(self, least: float, most: float) -> float:
        """Sum of the magnitudes from `least` to `most`, these with all that are as large, rounded once."""
        inside = (self._values >= least) & (self._values <= most)
        return math.fsum((self._values * self.counts)[inside].tolist())

    @property
    def _values(self) -> NDArray[Any]:
        return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def rounds_to(magnitude: float) -> float:
    """The smallest float32 number that rounds to a bf16 magnitude, which is not 0: to nearest, ties to even."""
    bits = int(np.float32(magnitude).view(np.uint32))
    middle = bits - (1 << 15)
    return float(np.uint32(middle + (bits >> 16 & 1)).view(np.float32))


def norms(histograms: Tensor) -> list[float]:
    """Euclidean norm of what each histogram, int64 [K, 32768], was counted from; the same whatever the order."""
    magnitudes = torch.arange(MAGNITUDES, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).double()
    squares = [counts.double() * magnitudes**2 for counts in histograms]
    return [math.sqrt(math.fsum(one[counts > 0].tolist())) for one, counts in zip(squares, histograms, strict=True)]


def kth_smallest_magnitude(histogram: Tensor, rank: int) -> float:
    """The magnitude at a rank of the sorted magnitudes.

    Args:
        histogram: int64 [32768].
        rank: 1-based; 0 gives 0.0, below which no magnitude lies.

    Returns:
        a bf16 number as a Python float, exactly.
    """
    if rank <= 0:
        return 0.0
    bits = int(torch.searchsorted(histogram.cumsum(0), rank))
    return float(torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16))
