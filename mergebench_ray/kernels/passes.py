"""Running an element-wise function over flat arrays: compiled where there is a compiler, else eagerly, same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mergebench_ray.kernels.block import BlockFunction, Scalars, scalar_tensors
from mergebench_ray.kernels.compiled import compile_kernel, warn_not_compiled
from mergebench_ray.kernels.compiled_kernel import CompiledKernel
from mergebench_ray.kernels.compilers import CannotCompileError
from mergebench_ray.kernels.eager import EagerKernel
from mergebench_ray.kernels.forms import Form

_TOTAL_BLOCK = 1 << 21
_TOTAL_GPU_BLOCK = 1 << 24
BROUGHT_WINDOW = 1 << 24
"""Entries of each array that a pass brings to a GPU at a time."""
_WINDOW_STEP = 32
_SHARE_STEP = 64


@dataclass(frozen=True)
class Segment:
    """A run of entries that share their scalars.

    Attributes:
        start: first entry, as an index into the flat arrays.
        stop: one past the last entry.
        position: place of the first entry in its own tensor (see `Block.position`).
        scalars: what the function gets beside the block.
    """

    start: int
    stop: int
    position: int
    scalars: Scalars


class Pass:
    """One function, traced, and compiled if possible, for K specialists on one device.

    Args:
        function: what to run.
        num_specialists: K.
        scalars: scalars of any segment; those of all others must have the same names, lengths and types.
        out_dtype: bf16 for merged parameters, float32 for `total`.
        device: where the arrays lie.
        compiled: False to stay with the eager pass.
        callers: threads that run the compiled kernel at once: of one pass, or of several. The eager one serves them
            one after the other.

    Attributes:
        problem: why it could not be compiled, or None.
    """

    def __init__(
        self,
        function: BlockFunction,
        num_specialists: int,
        scalars: Scalars,
        out_dtype: torch.dtype,
        device: torch.device,
        compiled: bool = True,
        callers: int = 1,
    ) -> None:
        (example,) = scalar_tensors([scalars], device)
        self._device = device
        self._eager = EagerKernel(function, num_specialists, example, device)
        self.problem: str | None = None
        self._compiled: CompiledKernel | None = None
        self._form = Form.of(function, out_dtype, device)
        self._callers = callers
        if compiled:
            try:
                self._compiled = compile_kernel(
                    function,
                    num_specialists,
                    example,
                    out_dtype,
                    device,
                    lambda: self._eager.signature,
                    self._form,
                    callers,
                )
            except CannotCompileError as error:
                self.problem = str(error)
                warn_not_compiled(self.problem)

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled kernel runs, rather than the eager one."""
        return self._compiled is not None

    def run(
        self,
        base: Tensor,
        task_vectors: Sequence[Tensor],
        segments: Sequence[Segment],
        out: Tensor,
        threads: int,
        companions: Sequence[Tensor] = (),
    ) -> None:
        """Fill `out` over the segments, in place.

        What is not where `out` is, as in host memory beside a GPU, comes there a window at a time.

        Args:
            base: bf16 [n].
            task_vectors: K times bf16 [n].
            segments: parts of [0, n) to do.
            out: [n] of the pass's output dtype.
            threads: threads to use on a CPU; the result does not depend on it.
            companions: [n] of the function's `companion` dtype, as many as it reads.
        """
        distinct = {id(segment.scalars): segment.scalars for segment in segments}
        converted = dict(zip(distinct, scalar_tensors(list(distinct.values()), self._device), strict=True))
        if self._is_elsewhere(base):
            for segment in segments:
                for entries, window in self._brought([base, *task_vectors, *companions], segment, out):
                    for part in self._parts(window, entries, self._arrays(entries)):
                        part.run(converted[id(segment.scalars)], threads)
            return
        entries = [base, *task_vectors, *companions, out]
        arrays = self._arrays(entries)

        def run(some: Sequence[Segment], threads: int) -> None:
            for segment in some:
                for part in self._parts(segment, entries, arrays):
                    part.run(converted[id(segment.scalars)], threads)

        if arrays is None or len(segments) == 1 or min(threads, self._callers) == 1 or out.device.type != "cpu":
            run(segments, threads)
            return
        # A thread for each share of the segments, which waits for the others once: within a segment all would wait for
        # the slowest, hundreds of times a pass, and where others work on the same cores each time for one of those.
        shares = _shares(segments, min(threads, self._callers))
        with ThreadPoolExecutor(len(shares)) as pool:
            for done in [pool.submit(run, share, 1) for share in shares]:
                done.result()

    def total(self, base: Tensor, task_vectors: Sequence[Tensor], scalars: Scalars, threads: int) -> int:
        """Sum of the function over [n], exact as long as its values are whole numbers of at most 8.

        No model-sized temporary: the values of a block are summed before the next block is computed.
        """
        (small,) = scalar_tensors([scalars], self._device)
        block = _TOTAL_BLOCK if self._device.type == "cpu" else _TOTAL_GPU_BLOCK
        values = torch.empty(min(block, len(base)), dtype=torch.float32, device=self._device)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for start in range(0, len(base), block):
            entries = [array[start : start + block].to(self._device) for array in (base, *task_vectors)]
            entries.append(values[: len(entries[0])])
            for part in self._parts(Segment(0, len(entries[0]), 0, scalars), entries, self._arrays(entries)):
                part.run(small, threads)
            total += entries[-1].sum(dtype=None if self._device.type == "cpu" else torch.float64)
        return int(total)

    def _is_elsewhere(self, array: Tensor) -> bool:
        return array.device.type != self._device.type

    def _brought(
        self, sources: Sequence[Tensor], segment: Segment, out: Tensor
    ) -> Iterator[tuple[list[Tensor], Segment]]:
        """Windows of a segment, with its entries of all arrays where `out` is.

        Copies and kernels stand in one queue of the device, so that none waits for the host. Windows begin where wide
        reads do.
        """
        start = segment.start - segment.start % _WINDOW_STEP
        for first in range(start, segment.stop, BROUGHT_WINDOW):
            stop = min(first + BROUGHT_WINDOW, segment.stop)
            entries = [source[first:stop].to(self._device, non_blocking=True) for source in sources]
            begin = max(first, segment.start)
            window = Segment(begin - first, stop - first, segment.position + begin - segment.start, segment.scalars)
            yield [*entries, out[first:stop]], window

    def _arrays(self, entries: list[Tensor]) -> list[Tensor] | None:
        """What the compiled kernel would run over; None where there is none, or where it cannot."""
        return None if self._compiled is None else self._form.arrays(entries)

    def _parts(self, segment: Segment, entries: list[Tensor], arrays: list[Tensor] | None) -> list[_Part]:
        """What runs over a segment: the compiled kernel over what fits its form, the eager one over the rest."""
        start, stop, position = segment.start, segment.stop, segment.position
        whole = range(0) if arrays is None else self._form.whole(start, stop)
        if self._compiled is None or arrays is None or not whole:
            return [_Part(self._eager, entries, start, stop, position)]
        first, last = self._form.entries * whole.start, self._form.entries * whole.stop
        parts = [
            _Part(self._eager, entries, start, first, position),
            _Part(self._compiled, arrays, whole.start, whole.stop, position + first - start),
            _Part(self._eager, entries, last, stop, position + last - start),
        ]
        return [part for part in parts if part.start < part.stop]


def _shares(segments: Sequence[Segment], count: int) -> list[list[Segment]]:
    """Segments cut into as many runs of about as many entries each."""
    most = -(-sum(segment.stop - segment.start for segment in segments) // count)
    most += -most % _SHARE_STEP
    shares: list[list[Segment]] = [[]]
    left = most
    for segment in segments:
        start = segment.start
        while start < segment.stop:
            if not left:
                shares.append([])
                left = most
            stop = min(segment.stop, start + left)
            position = segment.position + start - segment.start
            shares[-1].append(Segment(start, stop, position, segment.scalars))
            left -= stop - start
            start = stop
    return shares


class _Part(NamedTuple):
    """A run of one kernel over start .. stop of its tensors, whose first entry has this position."""

    kernel: CompiledKernel | EagerKernel
    tensors: list[Tensor]
    start: int
    stop: int
    position: int

    def run(self, scalars: dict[str, Tensor], threads: int) -> None:
        *arrays, out = [tensor[self.start : self.stop] for tensor in self.tensors]
        self.kernel(arrays, self.position, scalars, out, threads)
