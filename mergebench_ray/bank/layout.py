"""Where each parameter lies: one flat order over all merged tensors, cut into shards at any element."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from mergebench_ray.checkpoints import Checkpoint, merged_names, streamed_names
from mergebench_ray.config.fields import ModuleKind
from mergebench_ray.kernels.random import POSITIONS


@dataclass(frozen=True)
class LayoutTensor:
    """A tensor, or a run of 2**30 entries of a larger one, in the flat order.

    Attributes:
        name: name in the checkpoint.
        shape: shape of the whole tensor.
        layer: index of its layer, None outside the layers.
        kind: of the module that it is part of.
        part: index of the run within the tensor.
        start: first entry in the flat order.
        count: number of entries.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    kind: ModuleKind
    part: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        """One past the last entry in the flat order."""
        return self.start + self.count

    @property
    def offset(self) -> int:
        """First entry within the flattened tensor."""
        return self.part * POSITIONS


@dataclass(frozen=True)
class Overlap:
    """What a range of the flat order holds of a tensor.

    Attributes:
        tensor: the tensor (or run of one).
        start: first entry in the flat order.
        stop: one past the last.
    """

    tensor: LayoutTensor
    start: int
    stop: int

    @property
    def position(self) -> int:
        """Place of the first entry in the tensor's run."""
        return self.start - self.tensor.start

    @property
    def first(self) -> int:
        """Place of the first entry in the flattened tensor."""
        return self.tensor.offset + self.position


@dataclass(frozen=True)
class Layout:
    """The flat order of a model.

    Attributes:
        merged: merged tensors by layer, then name; those outside the layers last. They stay resident.
        streamed: tensors that count for global thresholds but are not merged (an untied output head), in a flat order
            of their own. They are read from the checkpoints when a statistic is made.
        num_layers: layers of the model.
    """

    merged: tuple[LayoutTensor, ...]
    streamed: tuple[LayoutTensor, ...]
    num_layers: int

    @classmethod
    def of(cls, base: Checkpoint, specialists: Collection[Checkpoint] = ()) -> Layout:
        """The layout of a model like `base`, of which some tensors may not be in all specialists: those stay out."""
        layers = {name: base.family.layer_of(name, base.num_layers) for name in base.tensors}
        merged = merged_names(base, specialists)
        merged.sort(key=lambda name: (layers[name] is None, layers[name] or 0, name))
        return cls(_place(merged, base), _place(streamed_names(base, specialists), base), base.num_layers)

    @cached_property
    def size(self) -> int:
        """Number of merged parameters."""
        return sum(tensor.count for tensor in self.merged)

    @cached_property
    def streamed_size(self) -> int:
        """Number of streamed parameters."""
        return sum(tensor.count for tensor in self.streamed)

    def overlaps(self, start: int, stop: int) -> Iterator[Overlap]:
        """What the range [start, stop) holds of each merged tensor, in order."""
        return _overlaps(self.merged, start, stop)

    def streamed_overlaps(self, start: int, stop: int) -> Iterator[Overlap]:
        """What the range [start, stop) of the streamed order holds of each streamed tensor, in order."""
        return _overlaps(self.streamed, start, stop)


def shard_range(size: int, shards: int, index: int) -> tuple[int, int]:
    """The contiguous part [start, stop) of `size` entries that belongs to a shard; parts differ by at most one."""
    return size * index // shards, size * (index + 1) // shards


def _place(names: Sequence[str], base: Checkpoint) -> tuple[LayoutTensor, ...]:
    tensors = []
    start = 0
    for name in names:
        shape = tuple(base.tensors[name].shape)
        size = prod(shape)
        for part in range(-(-size // POSITIONS)):
            count = min(POSITIONS, size - part * POSITIONS)
            layer, kind = base.family.layer_of(name, base.num_layers), base.family.module_kind(name)
            tensors.append(LayoutTensor(name, shape, layer, kind, part, start, count))
            start += count
    return tuple(tensors)


def _overlaps(tensors: tuple[LayoutTensor, ...], start: int, stop: int) -> Iterator[Overlap]:
    for tensor in tensors:
        first, last = max(start, tensor.start), min(stop, tensor.stop)
        if first < last:
            yield Overlap(tensor, first, last)
