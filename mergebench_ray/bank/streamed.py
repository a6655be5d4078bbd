"""A merge that holds no model: windows are read from the checkpoints, merged, and written to their places.

It does what the bank's shards do, with the same work and the same passes, and so gives the same bits. What it holds is
bounded: for each thread the entries of a window of base and specialists, and for methods that solve for whole tensors
a group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.calibrator import Calibrator, calibration_record, require_calibrator
from mergebench_ray.bank.companions import CompanionFile
from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.solving import Solutions
from mergebench_ray.bank.windows import Window, window_runs
from mergebench_ray.bank.work import Work, plan_work, segments_of
from mergebench_ray.checkpoints import Checkpoint, TensorFiles, fill_in_shape_of, require_finite
from mergebench_ray.checkpoints.read_once import ReadOnce, hashed_as_read
from mergebench_ray.checkpoints.safetensors_file import forget_elements
from mergebench_ray.config import Recipe
from mergebench_ray.kernels import MAGNITUDES, BlockFunction, Pass, Scalars, magnitude_histogram
from mergebench_ray.machine import available_memory, usable_cores
from mergebench_ray.methods import Calibrated, CalibrationRequest, complete_parameters, get_method, parse_parameters
from mergebench_ray.progress import Meter, Progress, silent

WINDOW = 1 << 22
"""Most entries of a window: 8 MiB of each model, enough that reading a run of them is as fast as reading a file."""

_BUFFER_BYTES = 512 << 20
_ITEM_BYTES = torch.bfloat16.itemsize
_CPU = torch.device("cpu")
_REPORT_SECONDS = 0.2
_ROW = 32  # entries: each array begins on 64 bytes, a line of the cache


class StreamedBank:
    """Base and specialists of one merge, on disk; answers as `Statistics` for the method.

    Args:
        base: the base.
        specialists: by name; they fit the base.
        calibrator: for methods that take calibration data.
        threads: threads that read, merge and write; None for one more than there are cores, as some wait for a disk.
        window: most entries of a window; less where many models would take too much memory.
        progress: called with (fraction done, what is happening).
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        *,
        calibrator: Calibrator | None = None,
        threads: int | None = None,
        window: int = WINDOW,
        progress: Progress = silent,
    ) -> None:
        self.specialists = sorted(specialists)
        self.layout = Layout.of(base, specialists.values())
        self._all = [hashed_as_read(model) for model in (base, *(specialists[name] for name in self.specialists))]
        self._base = self._all[0]
        self._calibrator = calibrator
        self._threads = threads or usable_cores() + 1
        self._progress = progress
        arrays = len(self.specialists) + 2
        self._window = min(window, max(1 << 16, _BUFFER_BYTES // (arrays * _ITEM_BYTES * self._threads)))
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()
        self._num_buffers = 0
        self._histograms: Tensor | None = None
        self._lock = Lock()
        self._stopped = Event()
        num_bytes = sum(info.num_bytes for model in self._all for info in model.tensors.values())
        # What is read once, or evicted before it is read again, would only push out what others need.
        self.exceeds_memory = num_bytes > available_memory() // 2

    @property
    def num_entries(self) -> int:
        """Entries of a task vector that count for global statistics."""
        return self.layout.size + self.layout.streamed_size

    def merge(self, method: str, parameters: Mapping[str, Any], files: TensorFiles) -> None:
        """Merge, and write every tensor of the base, merged or not.

        Args:
            method: name of the merging method.
            parameters: its hyper-parameters, completed.
            files: where to.

        Raises:
            InputError: NaN or infinity in a weight or in the merge, naming checkpoint and tensor; a file that has
                changed meanwhile; a wrong hyper-parameter.
        """
        chosen = get_method(method)
        checked = parse_parameters(method, parameters)
        prepared = chosen.prepare(checked, self)
        work = plan_work(self.layout, chosen, checked, prepared, self.specialists, {})
        self._merge_windows(work, files)
        if work.solver is not None:
            self._solve(work, files)
        self._hash_the_rest()

    def recipe(self, method: str, parameters: Mapping[str, Any]) -> Recipe:
        """The complete recipe of a merge of these models, of which those bytes are read that nobody has read yet.

        Raises:
            InputError: as `Bank.recipe`.
        """
        self._hash_the_rest()
        completed = complete_parameters(method, parameters, self.specialists, self.layout.num_layers)
        models = dict(zip(self.specialists, self._all[1:], strict=True))
        return Recipe(
            method=method,
            parameters=completed,
            base=str(self._base.ref),
            specialists={name: str(model.ref) for name, model in models.items()},
            base_digest=self._base.digest(),
            specialist_digests={name: model.digest() for name, model in models.items()},
            calibration=calibration_record(self._calibrator, method, completed),
        )

    def magnitude_histograms(self) -> Tensor:
        """Exact counts of the magnitudes of every task vector, int64 [K, 32768]; made once."""
        if self._histograms is None:
            counts = torch.zeros(len(self.specialists), MAGNITUDES, dtype=torch.int64)

            def count(_window: Window, arrays: list[Tensor]) -> None:
                found = torch.stack([magnitude_histogram(vector) for vector in arrays[1:-1]])
                with self._lock:
                    counts.add_(found)

            self._over_all("counting magnitudes", count)
            self._histograms = counts
        return self._histograms

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over the entries."""
        run = self._pass(function, scalars, torch.float32)
        totals: list[int] = []

        def add(_window: Window, arrays: list[Tensor]) -> None:
            totals.append(run.total(arrays[0], arrays[1:-1], scalars, self._threads_of(run)))

        self._over_all("electing", add)
        return sum(totals)

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """A statistic on disk, made first if it is not there."""
        self._hash_the_rest()  # which it begins with
        return require_calibrator(self._calibrator, request.kind).statistics(request)

    def _merge_windows(self, work: Work, files: TensorFiles) -> None:
        """Merge what is merged entry by entry, and copy what is the base's."""
        run = self._pass(work.kernel, work.scalars[0], torch.bfloat16)
        companions = [CompanionFile(companion) for companion in work.companions]
        index_of = {(tensor.name, tensor.part): index for index, tensor in enumerate(self.layout.merged)}

        def merge(window: Window, arrays: list[Tensor]) -> None:
            base, *vectors, out = arrays
            todo = [(overlap, index_of[overlap.tensor.name, overlap.tensor.part]) for overlap in window.overlaps]
            segments = segments_of(work, todo, window.start)
            beside = [_read_companion(companion, window) for companion in companions]
            run.run(base, vectors, segments, out, self._threads_of(run), beside)
            for overlap in window.overlaps:
                files.write(overlap.tensor.name, overlap.first, out[window.place_of(overlap)])

        solved = work.solver or ()
        merged = [tensor for tensor in self.layout.merged if tensor.name not in solved]
        runs = window_runs(merged, self._window)
        taken = {tensor.name for tensor in self.layout.merged}
        copies = [name for name, info in self._base.tensors.items() if name not in taken and info.numel]
        num_bytes = sum(window.size for run in runs for window in run) * _ITEM_BYTES * (len(self._all) + 1)
        num_bytes += sum(2 * self._base.tensors[name].num_bytes for name in copies)
        meter = Meter(self._progress, "merging", num_bytes)
        copying = [lambda name=name: self._copy(name, files, meter) for name in copies]
        moved = len(self._all) + 1
        self._run_all([*copying, *(self._task(run, merge, meter, moved) for run in runs)], meter)

    def _copy(self, name: str, files: TensorFiles, meter: Meter) -> None:
        """Write a tensor that is the base's."""
        info = self._base.tensors[name]
        for start in range(0, info.numel, self._window):
            values = self._base.read(name, start, min(self._window, info.numel - start))
            require_finite(info.file, name, values)
            files.write(name, start, values)
            self._forget(self._base, name, start, len(values))
            meter.add(2 * values.nbytes)
            self._end_if_stopped()

    def _solve(self, work: Work, files: TensorFiles) -> None:
        """Solve for whole tensors, as many groups at a time as there are cores."""
        assert work.solver is not None
        groups = work.solver.groups
        size = self._threads
        for first in range(0, len(groups), size):
            # Of its own for each, so that none keeps what the solutions of all groups would share.
            solutions = Solutions(self._all, _CPU)
            for group, solved in solutions.of(work.solver, groups[first : first + size], size):
                for name, values in zip(group, solved, strict=True):
                    files.write(name, 0, values)
            self._progress(first / len(groups), f"solving: {first} of {len(groups)} groups of layers")

    def _hash_the_rest(self) -> None:
        """Have all digests, reading what nobody has read."""
        rest = [part for model in self._all if isinstance(model, ReadOnce) for part in model.unread()]
        meter = Meter(self._progress, "hashing what is not merged", sum(num_bytes for num_bytes, _ in rest))

        def task(num_bytes: int, read: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                read()
                meter.add(num_bytes)

            return run

        self._run_all([task(*part) for part in sorted(rest, key=lambda part: -part[0])], meter)
        for model in self._all:
            if isinstance(model, ReadOnce):
                model.remember()

    def _over_all(self, what: str, do: Callable[[Window, list[Tensor]], None]) -> None:
        """Call a function with every window of the entries that count for statistics."""
        runs = [*window_runs(self.layout.merged, self._window), *window_runs(self.layout.streamed, self._window)]
        meter = Meter(self._progress, what, self.num_entries * _ITEM_BYTES * len(self._all))
        self._run_all([self._task(run, do, meter, len(self._all)) for run in runs], meter)

    def _task(
        self, run: Sequence[Window], do: Callable[[Window, list[Tensor]], None], meter: Meter, moved: int
    ) -> Callable[[], None]:
        """Read the windows of a run one after the other, each followed by `do`; `moved` arrays are read and written."""

        def task() -> None:
            for window in run:
                self._end_if_stopped()
                buffer = self._buffers.get()
                try:
                    do(window, self._read(window, buffer))
                finally:
                    self._buffers.put(buffer)
                meter.add(window.size * _ITEM_BYTES * moved)

        return task

    def _read(self, window: Window, buffer: Tensor) -> list[Tensor]:
        """Base, task vectors and room for a result, each bf16 [n] of the window."""
        base, *others, out = buffer[:, : window.size].unbind()
        for overlap in window.overlaps:
            place, name = window.place_of(overlap), overlap.tensor.name
            for model, values in zip(self._all, (base, *others), strict=True):
                fill_in_shape_of(self._base, model, name, overlap.first, values[place])
                require_finite(model, name, values[place])
                self._forget(model, name, overlap.first, overlap.stop - overlap.start)
        for values in others:
            torch.sub(values, base, out=values)
        return [base, *others, out]

    def _forget(self, model: Checkpoint, name: str, start: int, count: int) -> None:
        if self.exceeds_memory:
            forget_elements(model.tensors[name], start, count)

    def _pass(self, kernel: BlockFunction, scalars: Scalars, out_dtype: torch.dtype) -> Pass:
        return Pass(kernel, len(self.specialists), scalars, out_dtype, _CPU, callers=self._threads)

    def _threads_of(self, run: Pass) -> int:
        """Threads of a pass in each of this bank's: an eager pass is for one of these at a time."""
        return 1 if run.is_compiled else usable_cores()

    def _run_all(self, tasks: Sequence[Callable[[], None]], meter: Meter) -> None:
        """Run tasks in threads, and tell how far they are; the first error ends all."""
        arrays, room = len(self._all) + 1, self._window + -self._window % _ROW
        while self._num_buffers < self._threads:
            self._buffers.put(torch.empty(arrays, room, dtype=torch.bfloat16))
            self._num_buffers += 1
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = {pool.submit(task) for task in tasks}
            try:
                while pending:
                    done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                    for one in done:
                        one.result()
                    meter.report()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _end_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise CancelledError


def _read_companion(companion: CompanionFile, window: Window) -> Tensor:
    array = torch.empty(window.size, dtype=companion.dtype)
    for overlap in window.overlaps:
        companion.read(overlap, array[window.place_of(overlap)])
    return array
