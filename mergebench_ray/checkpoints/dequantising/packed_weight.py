"""What every kind of quantised weight has: parts that are stored, and rows that can be had from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.safetensors_file import read_columns, read_elements

_BLOCK_ELEMENTS = 1 << 22


class UnreadableError(ValueError):
    """Quantised weights that are not as they are known here; says why."""


@dataclass(frozen=True)
class PackedWeight(ABC):
    """A weight that is not stored as it is used.

    Every entry depends on its own place alone, so that no bit depends on which rows are asked for together.

    Attributes:
        name: of the weight that comes of it.
        shape: of that weight: [rows, columns], or [matrices, rows, columns].
        parts: what is stored of it, by names that its kind gives them; `main` is the largest.
        row_block: rows that begin at a multiple of it can be had without those before.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, TensorInfo]
    row_block: int = 1

    @abstractmethod
    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Rows [first, stop) of one matrix, [rows, columns], in floating point.

        Args:
            matrix: which; 0 where there is one.
            first: a multiple of `row_block`.
            stop: a multiple of it, or the number of rows.

        Raises:
            InputError: a file has changed, or says otherwise than its header.
        """

    @property
    def info(self) -> TensorInfo:
        """The weight that comes of it, as in a header; its place is that of the largest part."""
        main = self.parts["main"]
        return TensorInfo(self.name, self.shape, torch.bfloat16, main.file, main.offset, main.state)

    def read(self, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of the flattened weight, bf16; some rows are in memory at a time."""
        result = torch.empty(count, dtype=torch.bfloat16)
        num_rows, columns = self.shape[-2:]
        step = max(1, _BLOCK_ELEMENTS // (columns * self.row_block)) * self.row_block
        size = num_rows * columns
        for matrix in range(start // size, -(-(start + count) // size)):
            begin, end = max(start - matrix * size, 0), min(start + count - matrix * size, size)
            top = begin // columns // self.row_block * self.row_block
            bottom = min(-(-end // (columns * self.row_block)) * self.row_block, num_rows)
            for first, rows in self.blocks(matrix, top, bottom, step):
                low, high = max(begin, first * columns), min(end, (first + len(rows)) * columns)
                values = rows.flatten()[low - first * columns : high - first * columns]
                result[matrix * size + low - start : matrix * size + high - start] = values
        return result

    def blocks(self, matrix: int, first: int, stop: int, step: int) -> Iterator[tuple[int, Tensor]]:
        """Rows [first, stop) as `rows` gives them, at most `step` at a time, each after the number of its first."""
        for low in range(first, stop, step):
            yield low, self.rows(matrix, low, min(low + step, stop))

    def part(self, name: str) -> Tensor:
        """A whole part, in its shape."""
        info = self.parts[name]
        return read_elements(info, 0, info.numel).view(info.shape)

    def part_rows(self, name: str, first: int, stop: int) -> Tensor:
        """Slices [first, stop) of a part's first dimension."""
        info = self.parts[name]
        size = prod(info.shape[1:])
        return read_elements(info, first * size, (stop - first) * size).view(stop - first, *info.shape[1:])


@dataclass(frozen=True)
class PackedByColumn(PackedWeight):
    """A weight whose rows are columns of what is stored, each of which lies all over its part.

    Those that are asked for together are read once, before the first of them is made plain: with up to eight bits an
    entry they take at most half of the memory of the result, beside their scales.
    """

    @abstractmethod
    def unpacked(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The rows that some columns of the parts are, in floating point.

        Args:
            stored: columns of each matrix among the parts, and the others whole, by the names of `parts`.
        """

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Rows [first, stop)."""
        ((_, rows),) = self.blocks(matrix, first, stop, stop - first)
        return rows

    def blocks(self, matrix: int, first: int, stop: int, step: int) -> Iterator[tuple[int, Tensor]]:
        """Rows [first, stop), at most `step` at a time, of which every byte is read once."""
        per = {name: self.shape[0] // info.shape[1] for name, info in self.parts.items() if len(info.shape) == 2}
        columns = {name: read_columns(self.parts[name], first // n, stop // n) for name, n in per.items()}
        whole = {name: self.part(name) for name in self.parts.keys() - per.keys()}
        for low in range(first, stop, step):
            begin, end = low - first, min(low + step, stop) - first
            some = {name: part[:, begin // per[name] : end // per[name]] for name, part in columns.items()}
            yield low, self.unpacked(whole | some)


@dataclass(frozen=True)
class Found:
    """The quantised weights of a checkpoint.

    Attributes:
        kind: what they are, in a word or two.
        weights: the weights.
        dropped: names of tensors that say how activations are quantised, which plain weights have no use for.
    """

    kind: str
    weights: tuple[PackedWeight, ...]
    dropped: frozenset[str] = frozenset()

    @property
    def note(self) -> str:
        """What is said of a checkpoint that has them."""
        return f"read from {self.kind}, dequantised to bfloat16"

    @property
    def stored(self) -> set[str]:
        """Names of all that is stored and is no weight of the model."""
        return {info.name for weight in self.weights for info in weight.parts.values()} | self.dropped


def require_shape(info: TensorInfo, *shapes: tuple[int, ...]) -> None:
    """Refuse a part that does not fit the others.

    Raises:
        UnreadableError: naming it.
    """
    if info.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise UnreadableError(f"{info.name!r} has shape {list(info.shape)}, where {wanted} is expected")


def require_float(info: TensorInfo) -> None:
    """Refuse scales that are no numbers to multiply with.

    Raises:
        UnreadableError: naming them.
    """
    if not info.dtype.is_floating_point:
        raise UnreadableError(f"{info.name!r} is {info.dtype}, where floating point is expected")
