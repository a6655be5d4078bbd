"""What a shard of the bank holds: its range of base and task vectors, read by itself, and passes over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mergebench_ray.bank.layout import Layout, Overlap, shard_range
from mergebench_ray.bank.passes import pass_key
from mergebench_ray.checkpoints import Checkpoint, read_in_shape_of, require_finite
from mergebench_ray.kernels import BlockFunction, Pass, Scalars
from mergebench_ray.steps import SLOWEST_FETCH, Steps
from mergebench_ray.weights.memory_file import pin

_READ_BLOCK = 1 << 22
_ROW = 32
_SLOWEST_READ = 5e4
"""Entries of a checkpoint that are read in a second, at the least."""
_SLOWEST_PASS = 5e7
"""Bytes that a pass moves in a second, at the least: the eager one on a single thread does ten times as much."""
_COMPILE_SECONDS = 240.0
"""In which a pass is compiled the first time, or found in the cache, at the most; others may be at it, too."""


class ShardWeights:
    """Base [n] and task vectors [K, n], bf16, on a shard's device, or in pinned host memory beside it.

    Args:
        base: the base's checkpoint.
        specialists: checkpoints in the order of their sorted names.
        layout: the flat order.
        index: which shard.
        shards: how many there are.
        threads: threads of the passes on a CPU.
        use_gpu: whether to hold the weights on the GPU that Ray assigned.
        steps: told what it is at; None where nobody asks.
        streams: whether a GPU has room for the output alone: passes then bring what they read a window at a time.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        layout: Layout,
        index: int,
        shards: int,
        threads: int,
        use_gpu: bool,
        steps: Steps | None = None,
        streams: bool = False,
    ) -> None:
        self._steps = Steps() if steps is None else steps
        self._base_checkpoint = base
        self._checkpoints = list(specialists.values())
        self._layout = layout
        self._threads = threads
        self._device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
        self._range = shard_range(layout.size, shards, index)
        self._streamed_range = shard_range(layout.streamed_size, shards, index)
        size = self._range[1] - self._range[0]
        self._memory = torch.device("cpu") if streams else self._device
        """Where base, task vectors and what goes with each of their entries are."""
        self._base = torch.empty(size, dtype=torch.bfloat16, device=self._memory)
        # Every row begins on 64 bytes: a line of a CPU's cache, and more than what a GPU's wide reads ask for.
        padded = torch.empty(len(specialists), size + -size % _ROW, dtype=torch.bfloat16, device=self._memory)
        self._not_pinned: str | None = None
        if self._memory != self._device:
            self._not_pinned = pin(self._base) or pin(padded)
        self._task_vectors = padded[:, :size]
        self._passes: dict[str, Pass] = {}
        self._entries_read = 0
        self._loading, self._loaded = threading.Lock(), False

    def progress(self) -> int:
        """Parameters loaded so far."""
        return self._entries_read

    def _load(self) -> None:
        """Read this shard's slices of all checkpoints, unless they are there.

        Whatever needs them does so by itself: where Ray starts an actor again, nobody else knows.

        Raises:
            InputError: naming checkpoint and tensor where a weight is NaN or infinite.
        """
        with self._loading:
            if not self._loaded:
                self._read_all()
                self._loaded = True

    def _read_all(self) -> None:
        torch.set_num_threads(self._threads)
        start = self._range[0]
        for overlap in self._layout.overlaps(*self._range):
            for block in _blocks(overlap):
                window = slice(block.start - start, block.stop - start)
                self._base[window], vectors = self._read(block)
                for k, vector in enumerate(vectors):
                    self._task_vectors[k, window] = vector
                self._entries_read += block.stop - block.start

    def _passing(self, key: str) -> AbstractContextManager[None]:
        """A step that goes over all that this shard holds; one that is the first of a pass may compile it."""
        moved = (2 * len(self._checkpoints) + 2) * self._base.nbytes  # a companion of each task vector included
        compiling = 0.0 if not key or key in self._passes else _COMPILE_SECONDS
        return self._steps.step(compiling + moved / _SLOWEST_PASS)

    def _windows(self) -> list[tuple[str, slice]]:
        """Where each tensor, or what this shard holds of it, lies in its arrays."""
        begin, stop = self._range
        overlaps = self._layout.overlaps(begin, stop)
        return [(one.tensor.name, slice(one.start - begin, one.stop - begin)) for one in overlaps]

    def _vectors(self) -> list[Tensor]:
        return list(self._task_vectors.unbind())

    def _read(self, block: Overlap) -> tuple[Tensor, list[Tensor]]:
        """Base and task vectors of a block, bf16, on this shard's device."""
        base = self._read_one(self._base_checkpoint, block)
        return base, [self._read_one(checkpoint, block) - base for checkpoint in self._checkpoints]

    def _read_one(self, checkpoint: Checkpoint, block: Overlap) -> Tensor:
        count = block.stop - block.start
        to_fetch = checkpoint.tensors[block.tensor.name].bytes_to_fetch
        with self._steps.step(count / _SLOWEST_READ + to_fetch / SLOWEST_FETCH):
            values = read_in_shape_of(self._base_checkpoint, checkpoint, block.tensor.name, block.first, count)
            require_finite(checkpoint, block.tensor.name, values)
        return values.to(self._memory)

    def _block(self, block: Overlap) -> list[Tensor]:
        """Base and task vectors of a block that begins here; what is beyond this shard's range is read."""
        begin, stop = self._range
        window = slice(block.start - begin, min(block.stop, stop) - begin)
        here = [self._base[window], *self._task_vectors[:, window].unbind()]
        if block.stop <= stop:
            return here
        base, vectors = self._read(Overlap(block.tensor, stop, block.stop))
        return [torch.cat(parts) for parts in zip(here, [base, *vectors], strict=True)]

    def _streamed_blocks(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Base and task vectors of this shard's share of the tensors that are not resident."""
        for overlap in self._layout.streamed_overlaps(*self._streamed_range):
            for block in _blocks(overlap):
                read = self._read(block)
                with self._steps.step():  # what is made of it
                    yield read

    def _pass(self, kernel: BlockFunction, scalars: Scalars, out_dtype: torch.dtype) -> Pass:
        key = pass_key(kernel, out_dtype)
        if key not in self._passes:
            count = len(self._checkpoints)
            self._passes[key] = Pass(kernel, count, scalars, out_dtype, self._device, callers=self._threads)
        return self._passes[key]


def _blocks(overlap: Overlap) -> Iterator[Overlap]:
    """An overlap cut into pieces small enough to be read one at a time."""
    for start in range(overlap.start, overlap.stop, _READ_BLOCK):
        yield Overlap(overlap.tensor, start, min(start + _READ_BLOCK, overlap.stop))
