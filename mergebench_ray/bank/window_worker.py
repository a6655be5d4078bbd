"""What is done with windows wherever it is done: read them, count, merge, write; only windows are held.

The work and the passes are those of the bank's shards, and so are the bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.companions import CompanionFile
from mergebench_ray.bank.inner_products import Products, products_of
from mergebench_ray.bank.layout import Overlap
from mergebench_ray.bank.magnitudes import Counted, Totals, count_each, count_values
from mergebench_ray.bank.passes import pass_key
from mergebench_ray.bank.solving import Solutions
from mergebench_ray.bank.windows import Window
from mergebench_ray.bank.work import Work, segments_of
from mergebench_ray.checkpoints import Checkpoint, TensorWriter, fill_in_shape_of, read_in_shape_of, require_finite
from mergebench_ray.checkpoints.read_once import ReadOnce, hashed_as_read
from mergebench_ray.checkpoints.safetensors_file import advise
from mergebench_ray.errors import InputError
from mergebench_ray.kernels import (
    INNER_PRODUCT_BLOCK,
    MAGNITUDES,
    BlockFunction,
    Pass,
    Scalars,
    inner_products,
    magnitude_histogram,
)
from mergebench_ray.kernels.threads import torch_threads
from mergebench_ray.machine import usable_cores
from mergebench_ray.methods import Transform
from mergebench_ray.steps import Steps

_BUFFER_BYTES = 512 << 20
_ITEM_BYTES = torch.bfloat16.itemsize
_ROW = 32  # entries: each array begins on 64 bytes, a line of the cache
_CPU = torch.device("cpu")


class StoppedError(Exception):
    """Another call has failed, so this one need not go on."""


class WindowWorker:
    """Reads base and specialists from disk, a window at a time; for several threads at once, and pickled to others.

    What is done twice is the same as done once.

    Args:
        base: the base.
        specialists: in the order of their sorted names.
        threads: threads that will call it at once.
        window: most entries of a window; less where many models would take too much memory.
        forget: have the system forget what is read.

    Attributes:
        models: base and specialists, hashed as they are read.
        window: most entries of a window.
        whole_blocks: most entries of a window that is cut between blocks of inner products.
    """

    def __init__(
        self, base: Checkpoint, specialists: Sequence[Checkpoint], threads: int, window: int, forget: bool
    ) -> None:
        self.models = [hashed_as_read(model) for model in (base, *specialists)]
        arrays = len(self.models) + 1
        self.window = min(window, max(1 << 16, _BUFFER_BYTES // (arrays * _ITEM_BYTES * threads)))
        self.whole_blocks = max(self.window - self.window % INNER_PRODUCT_BLOCK, INNER_PRODUCT_BLOCK)
        self._threads = threads
        self._forget_pages = forget
        self._begin()

    def _begin(self) -> None:
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()
        self._passes: dict[str, Pass] = {}
        self._lock = Lock()
        self._stopped = Event()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_buffers", "_passes", "_lock", "_stopped")
        return {**{name: value for name, value in self.__dict__.items() if name not in own}, "_threads": 1}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def stop(self) -> None:
        """Have all calls end soon."""
        self._stopped.set()

    def hashed(self) -> list[tuple[int, str, str]]:
        """Digests that were finished here: index of the model, name of the tensor, SHA-256."""
        models = enumerate(self.models)
        return [(i, *one) for i, model in models if isinstance(model, ReadOnce) for one in model.finished()]

    def compile(self, kernel: BlockFunction, scalars: Scalars, out_dtype: torch.dtype) -> Pass:
        """The pass of a function; compiled once."""
        key = pass_key(kernel, out_dtype)
        with self._lock:
            if key not in self._passes:
                num_specialists = len(self.models) - 1
                self._passes[key] = Pass(kernel, num_specialists, scalars, out_dtype, _CPU, callers=self._threads)
            return self._passes[key]

    def count(self, run: Sequence[Window]) -> Tensor:
        """Exact counts of the magnitudes of every task vector, int64 [K, 32768]."""
        counts = torch.zeros(len(self.models) - 1, MAGNITUDES, dtype=torch.int64)
        for _, (_, *vectors, _) in self._windows(run):
            counts += torch.stack([magnitude_histogram(vector) for vector in vectors])
        return counts

    def magnitudes(self, run: Sequence[Window]) -> Counted:
        """Exact counts of the magnitudes of every task vector in what windows hold of each tensor."""
        found = []
        for window, (_, *vectors, _) in self._windows(run):
            for overlap in window.overlaps:
                place = window.place_of(overlap)
                found.append((overlap.tensor.name, count_each(vector[place] for vector in vectors)))
        return found

    def total(self, function: BlockFunction, scalars: Scalars, run: Sequence[Window]) -> int:
        """Sum of an element-wise function."""
        add = self.compile(function, scalars, torch.float32)
        threads = _threads_of(add)
        return sum(add.total(base, vectors, scalars, threads) for _, (base, *vectors, _) in self._windows(run))

    def values(
        self, function: BlockFunction, scalars: Mapping[str, Sequence[Scalars]], run: Sequence[Window]
    ) -> Counted:
        """Magnitudes of an element-wise function over what windows hold of each tensor, for each of its scalars."""
        compiled = self.compile(function, next(iter(scalars.values()))[0], torch.bfloat16)
        threads, found = _threads_of(compiled), []
        for window, (base, *vectors, _) in self._windows(run):
            for overlap in window.overlaps:
                place, name = window.place_of(overlap), overlap.tensor.name
                some = [vector[place] for vector in vectors]
                found.append((name, count_values(compiled, base[place], some, scalars[name], threads)))
        return found

    def totals(self, function: BlockFunction, scalars: Sequence[Scalars], run: Sequence[Window]) -> Totals:
        """Sums of an element-wise function over what windows hold of each tensor, for each of several scalars."""
        add = self.compile(function, scalars[0], torch.float32)
        threads, found = _threads_of(add), []
        for window, (base, *vectors, _) in self._windows(run):
            for overlap in window.overlaps:
                place = window.place_of(overlap)
                some = [vector[place] for vector in vectors]
                found.append((overlap.tensor.name, [add.total(base[place], some, one, threads) for one in scalars]))
        return found

    def inner_products(self, run: Sequence[Window]) -> Products:
        """Inner products of base and task vectors over the blocks of windows that are cut between blocks."""
        found = []
        for window, (*arrays, _) in self._windows(run):
            found += products_of(window.overlaps, partial(_products_in, window, arrays))
        return found

    def merge(
        self, work: Work, indices: Mapping[tuple[str, int], int], files: TensorWriter, run: Sequence[Window]
    ) -> None:
        """Merge and write.

        Args:
            work: the merge.
            indices: index in the layout of each tensor, by name and part.
            files: where to.
            run: the windows.
        """
        merge = self.compile(work.kernel, work.scalars[0], work.out_dtype)
        companions = [CompanionFile(companion) for companion in work.companions]
        for window, (base, *vectors, room) in self._windows(run):
            out = room if work.out_dtype == room.dtype else torch.empty(window.size, dtype=work.out_dtype)
            todo = [(overlap, indices[overlap.tensor.name, overlap.tensor.part]) for overlap in window.overlaps]
            beside = [_read_companion(companion, window) for companion in companions]
            merge.run(base, vectors, segments_of(work, todo, window.start), out, _threads_of(merge), beside)
            for overlap in window.overlaps:
                place, name = window.place_of(overlap), overlap.tensor.name
                with self._named(name, [vector[place] for vector in vectors]):
                    files.write(name, overlap.first, out[place])

    def copy(self, name: str, files: TensorWriter) -> None:
        """Write a tensor that is the base's."""
        info = self.models[0].tensors[name]
        for start in range(0, info.numel, self.window):
            self._end_if_stopped()
            values = self.models[0].read(name, start, min(self.window, info.numel - start))
            require_finite(info.file, name, values)
            files.write(name, start, values)
            self._forget(self.models[0], name, start, len(values))

    def solve(self, work: Work, groups: Sequence[tuple[str, ...]], files: TensorWriter) -> None:
        """Solve for groups of whole tensors, of which nothing is kept, and write them."""
        assert work.solver is not None
        for group in groups:
            self._end_if_stopped()
            for _, solved in Solutions(self.models, _CPU, Steps()).of(work.solver, [group], 1):
                for name, values in zip(group, solved, strict=True):
                    files.write(name, 0, values)

    def transform(self, transform: Transform, name: str, files: Sequence[TensorWriter]) -> None:
        """Read a whole tensor of all models, transform its task vectors, and write what that gives, a file each."""
        self._end_if_stopped()
        info = self.models[0].tensors[name]
        weights = []
        for model in self.models:
            weights.append(read_in_shape_of(self.models[0], model, name, 0, info.numel).view(info.shape))
            require_finite(model, name, weights[-1])
        base, *specialists = weights
        vectors = [weight - base for weight in specialists]
        with self._named(name, vectors), torch_threads(1):
            for file, values in zip(files, transform.of(vectors), strict=True):
                file.write(name, 0, values)

    @contextmanager
    def _named(self, name: str, vectors: Sequence[Tensor]) -> Iterator[None]:
        """Say in an `InputError` about what is made of task vectors which tensor it is, and whose is the largest."""
        try:
            yield
        except InputError as error:
            # NaN is larger than any number.
            reach = torch.stack([vector.abs().max() for vector in vectors])
            model = self.models[1 + int(reach.argmax())]
            raise InputError(f"{error} (tensor {name!r}, in which {model} is furthest from the base)") from error

    def hash_rest(self, model: int, name: str) -> None:
        """Read what nobody has read of a tensor, for its digest."""
        one = self.models[model]
        assert isinstance(one, ReadOnce)
        one.read_rest(name, self._end_if_stopped)

    def _windows(self, run: Sequence[Window]) -> Iterator[tuple[Window, list[Tensor]]]:
        """Each window with base, task vectors and room for a result, bf16 [n], until the next one."""
        # Of one size where runs are cut alike, so that it serves the next one.
        most = max(self.window, *(window.size for window in run))
        with self._buffer(most) as buffer:
            self._read_ahead(run[:1])
            for index, window in enumerate(run):
                self._end_if_stopped()
                self._read_ahead(run[index + 1 : index + 2])
                yield window, self._read(window, buffer)

    @contextmanager
    def _buffer(self, entries: int) -> Iterator[Tensor]:
        room = entries + -entries % _ROW
        buffer = None
        with suppress(Empty):
            buffer = self._buffers.get_nowait()
        if buffer is None or buffer.shape[1] < room:
            buffer = torch.empty(len(self.models) + 1, room, dtype=torch.bfloat16)
        try:
            yield buffer
        finally:
            self._buffers.put(buffer)

    def _read(self, window: Window, buffer: Tensor) -> list[Tensor]:
        base, *others, out = buffer[:, : window.size].unbind()
        for overlap in window.overlaps:
            place, name = window.place_of(overlap), overlap.tensor.name
            for model, values in zip(self.models, (base, *others), strict=True):
                fill_in_shape_of(self.models[0], model, name, overlap.first, values[place])
                require_finite(model, name, values[place])
                self._forget(model, name, overlap.first, overlap.stop - overlap.start)
        for values in others:
            torch.sub(values, base, out=values)
        return [base, *others, out]

    def _read_ahead(self, windows: Sequence[Window]) -> None:
        """Have the disk read what comes next, of all models at once."""
        if self._forget_pages:
            for overlap in (overlap for window in windows for overlap in window.overlaps):
                for model in self.models:
                    info = model.tensors[overlap.tensor.name]
                    advise(info, overlap.first, overlap.stop - overlap.start, os.POSIX_FADV_WILLNEED)

    def _forget(self, model: Checkpoint, name: str, start: int, count: int) -> None:
        if self._forget_pages:
            advise(model.tensors[name], start, count, os.POSIX_FADV_DONTNEED)

    def _end_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoppedError


def _threads_of(run: Pass) -> int:
    """Threads of a pass in each calling thread: an eager pass is for one of these at a time."""
    return 1 if run.is_compiled else usable_cores()


def _products_in(window: Window, arrays: Sequence[Tensor], block: Overlap) -> Tensor:
    return inner_products([array[window.place_of(block)] for array in arrays])


def _read_companion(companion: CompanionFile, window: Window) -> Tensor:
    array = torch.empty(window.size, dtype=companion.dtype)
    for overlap in window.overlaps:
        companion.read(overlap, array[window.place_of(overlap)])
    return array
