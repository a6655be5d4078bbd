"""Statistics that a pass reads entry by entry, brought from disk into a shard once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergebench_ray.bank.layout import Layout, Overlap
from mergebench_ray.checkpoints.safetensors_file import read_elements, read_header
from mergebench_ray.errors import InputError
from mergebench_ray.methods import Calibrated


class CompanionFile:
    """A statistic on disk, by byte ranges.

    Args:
        companion: the file.

    Raises:
        InputError: a file that this node does not see.
    """

    def __init__(self, companion: Calibrated) -> None:
        self._path = companion.path
        self._header = read_header(companion.path)
        self.dtype = next(iter(self._header.values())).dtype

    def read(self, overlap: Overlap, out: Tensor) -> None:
        """Read an overlap's entries into [n] of the statistic's type, on any device.

        Raises:
            InputError: a file that is of another model.
        """
        info = self._header.get(overlap.tensor.name)
        if info is None or info.shape != overlap.tensor.shape:
            raise InputError(
                f"{self._path}: no statistic for {overlap.tensor.name} {list(overlap.tensor.shape)}; "
                "it was made for another model, remove it"
            )
        out.copy_(read_elements(info, overlap.first, overlap.stop - overlap.start))


class CompanionArrays:
    """A shard's range [start, stop) of the last statistic that was asked for, an array a specialist."""

    def __init__(self, layout: Layout, start: int, stop: int, device: torch.device) -> None:
        self._overlaps = list(layout.overlaps(start, stop))
        self._start, self._size = start, stop - start
        self._device = device
        self._keys: list[str] = []
        self._arrays: list[Tensor] = []

    def of(self, companions: Sequence[Calibrated]) -> list[Tensor]:
        """The arrays [n] of these files, read where they are not here already.

        Raises:
            InputError: a file that this node does not see, or that is of another model.
        """
        keys = [companion.key for companion in companions]
        if keys and keys != self._keys:
            self._keys, self._arrays = [], []
            self._arrays = [self._read(companion) for companion in companions]
            self._keys = keys
        return self._arrays if keys else []

    def _read(self, companion: Calibrated) -> Tensor:
        file = CompanionFile(companion)
        array = torch.empty(self._size, dtype=file.dtype, device=self._device)
        for overlap in self._overlaps:
            file.read(overlap, array[overlap.start - self._start : overlap.stop - self._start])
        return array
