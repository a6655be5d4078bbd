"""Weights that come from other nodes, or from disk, in buckets: no process has more than two of them in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from mergebench_ray.families import ModelFamily
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.manifest import Piece, WeightBucket, WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import MemoryFile
from mergebench_ray.weights.together import Together

BUCKET_BYTES = 64 << 20

ReadTensors: TypeAlias = Callable[[Sequence[WeightTensor]], Iterator[Bytes]]
"""Gives the bytes of tensors, one after the other, in runs of any length that are read no more once the next is asked
for."""
_KEPT_BYTES = 4 * BUCKET_BYTES
"""Of memory that is kept for the next stream, at most: to touch new memory takes longer than to write it."""
_free: list[MemoryFile] = []


@dataclass(frozen=True)
class WeightStream(WeightManifest):
    """A manifest whose tensors are brought into memory of this node while those before them are used.

    Attributes:
        family: says which tensors make a layer; buckets are cut between layers, and inside one that is larger.
        read: where tensors come from.
        bucket_bytes: most bytes of a bucket of more than one tensor.
        together: others of this node that read the same at once; None to read alone.
    """

    family: ModelFamily
    read: ReadTensors
    bucket_bytes: int = BUCKET_BYTES
    together: Together | None = None

    def buckets(self, names: Collection[str]) -> Generator[WeightBucket, None, None]:
        """The tensors of these names, bucket by bucket; the next one is written while one is used.

        Raises:
            Exception: whatever `read` does, before a bucket that would hold anything of it.
        """
        wanted = set(names)
        tensors = [tensor for tensor in self.tensors if tensor.name in wanted]
        if not tensors:
            yield WeightBucket(())
        elif self.together is None:
            yield from self._read(tensors)
        else:
            yield from self.together.buckets([tensor.name for tensor in tensors], lambda: self._read(tensors))

    def _read(self, tensors: Sequence[WeightTensor]) -> Generator[WeightBucket, None, None]:
        itemsize = getattr(torch, self.dtype).itemsize
        runs = cut(tensors, self.family, self.bucket_bytes // itemsize)
        size = max(map(_elements, runs)) * itemsize
        with ExitStack() as stack:
            slots = [_slot(size) for _ in runs[:2]]
            stack.callback(_give_back, slots)
            source = stack.enter_context(closing(_Source(self.read(tensors))))
            writer = stack.enter_context(ThreadPoolExecutor(1))

            def begin(index: int) -> Future[WeightBucket]:
                is_last = index == len(runs) - 1
                return writer.submit(_written, runs[index], slots[index % 2], itemsize, source, is_last=is_last)

            coming = begin(0)
            for index in range(1, len(runs) + 1):
                bucket = coming.result()
                if not bucket.is_last:
                    coming = begin(index)
                yield bucket


def cut(tensors: Sequence[WeightTensor], family: ModelFamily, most: int) -> list[list[WeightTensor]]:
    """Runs of tensors with at most so many elements, cut between layers; a layer that is larger is cut, no tensor is.

    Args:
        tensors: in their order.
        family: says which tensors make a layer.
        most: elements of a run of more than one tensor.
    """
    units: list[list[WeightTensor]] = []
    for _, layer in itertools.groupby(tensors, key=lambda tensor: family.load_group(tensor.name)):
        together = list(layer)
        units += [together] if _elements(together) <= most else [[tensor] for tensor in together]
    runs: list[list[WeightTensor]] = []
    for unit in units:
        if runs and _elements(runs[-1]) + _elements(unit) <= most:
            runs[-1] += unit
        else:
            runs.append(list(unit))
    return runs


def _elements(tensors: Sequence[WeightTensor]) -> int:
    return sum(tensor.count for tensor in tensors)


class _Source:
    """Runs of bytes, read in portions of other lengths."""

    def __init__(self, runs: Iterator[Bytes]) -> None:
        self._runs = runs
        self._rest: Bytes = np.empty(0, np.uint8)

    def read_into(self, place: Bytes) -> None:
        """Fill a place with the bytes that come next.

        Raises:
            RuntimeError: fewer come.
        """
        at = 0
        while at < len(place):
            while not len(self._rest):
                run = next(self._runs, None)
                if run is None:
                    raise RuntimeError("fewer bytes came than the tensors have")
                self._rest = run
            taken = min(len(self._rest), len(place) - at)
            place[at : at + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            at += taken

    def end(self) -> None:
        """Hear of what is wrong with the last run, too.

        Raises:
            RuntimeError: more comes than was asked for.
        """
        if len(self._rest) or next(self._runs, None) is not None:
            raise RuntimeError("more bytes came than the tensors have")

    def close(self) -> None:
        close = getattr(self._runs, "close", None)
        if close is not None:
            close()


def _written(
    run: Sequence[WeightTensor], slot: MemoryFile, itemsize: int, source: _Source, *, is_last: bool
) -> WeightBucket:
    """Write tensors into memory that other processes of the node map."""
    source.read_into(slot.tensor[: _elements(run) * itemsize].numpy())
    if is_last:
        source.end()
    starts = itertools.accumulate((tensor.count for tensor in run), initial=0)
    placed = [
        replace(tensor, pieces=(Piece(slot.path, start, tensor.count),))
        for tensor, start in zip(run, starts, strict=False)
    ]
    return WeightBucket(tuple(placed), is_last)


def _slot(size: int) -> MemoryFile:
    """Memory for a bucket of so many bytes, used before where there is any."""
    for place, slot in enumerate(_free):
        if len(slot.tensor) >= size:
            return _free.pop(place)
    if _free:
        _free.pop().close()  # as much is kept as before
    return MemoryFile(max(size, BUCKET_BYTES), torch.uint8)


def _give_back(slots: Sequence[MemoryFile]) -> None:
    for slot in slots:
        if len(_free) < 2 and len(slot.tensor) <= _KEPT_BYTES:
            _free.append(slot)
        else:
            slot.close()
