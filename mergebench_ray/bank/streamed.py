"""A merge that holds no model: windows are read from the checkpoints, merged, and written to their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.calibrator import Calibrator, calibration_record, require_calibrator
from mergebench_ray.bank.calls import Call, Calls, ThreadCalls
from mergebench_ray.bank.inner_products import products_by_tensor
from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.magnitudes import magnitudes_by_tensor, totals_by_tensor
from mergebench_ray.bank.transforms import transformed
from mergebench_ray.bank.window_worker import WindowWorker
from mergebench_ray.bank.windows import Window, window_runs
from mergebench_ray.bank.work import Work, plan_work
from mergebench_ray.checkpoints import Checkpoint, TensorWriter
from mergebench_ray.checkpoints.read_once import ReadOnce
from mergebench_ray.config import Recipe
from mergebench_ray.kernels import MAGNITUDES, BlockFunction, Magnitudes, Scalars
from mergebench_ray.machine import available_memory, usable_cores
from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    InnerProducts,
    Transform,
    complete_parameters,
    get_method,
    method_source,
    parse_parameters,
)
from mergebench_ray.progress import Meter, Progress, silent

WINDOW = 1 << 22
"""Most entries of a window: 8 MiB of each model, enough that reading a run of them is as fast as reading a file."""

_ITEM_BYTES = torch.bfloat16.itemsize


class StreamedBank:
    """Base and specialists of one merge, on disk; answers as `Statistics` for the method.

    Args:
        base: the base.
        specialists: by name; they fit the base.
        calibrator: for methods that take calibration data.
        threads: threads that read, merge and write; None for one more than there are cores, as some wait for a disk.
        calls: what runs them; None for threads of this process.
        window: most entries of a window.
        progress: called with (fraction done, what is happening).

    Attributes:
        exceeds_memory: whether the models are larger than half of what is free, so that the system would evict what
            others need to keep what is read.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        *,
        calibrator: Calibrator | None = None,
        threads: int | None = None,
        calls: Calls | None = None,
        window: int = WINDOW,
        progress: Progress = silent,
    ) -> None:
        self.specialists = sorted(specialists)
        self.layout = Layout.of(base, specialists.values())
        ordered = [specialists[name] for name in self.specialists]
        num_bytes = sum(info.num_bytes for model in (base, *ordered) for info in model.tensors.values())
        self.exceeds_memory = num_bytes > available_memory() // 2
        threads = threads or usable_cores() + 1
        self._worker = WindowWorker(base, ordered, threads, window, self.exceeds_memory)
        self._calls = calls or ThreadCalls(threads)
        self._calibrator = calibrator
        self._progress = progress
        self._histograms: Tensor | None = None
        self._magnitudes: Mapping[str, Sequence[Magnitudes]] | None = None
        self._inner_products: Mapping[str, InnerProducts] | None = None

    @property
    def num_entries(self) -> int:
        """Entries of a task vector that count for global statistics."""
        return self.layout.size + self.layout.streamed_size

    def merge(
        self,
        method: str,
        parameters: Mapping[str, Any],
        files: TensorWriter,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Merge, and write every tensor of the base, merged or not.

        Args:
            method: name of the merging method.
            parameters: its hyper-parameters, completed.
            files: where to.
            out_dtype: what is written.

        Raises:
            InputError: NaN or infinity in a weight or in the merge, naming checkpoint and tensor; a file that has
                changed meanwhile; a wrong hyper-parameter.
        """
        chosen = get_method(method)
        checked = parse_parameters(method, parameters)
        prepared = chosen.prepare(checked, self)
        work = plan_work(self.layout, chosen, checked, prepared, self.specialists, {})
        if out_dtype != work.out_dtype:
            work = replace(work, out_dtype=torch.float32)  # the files round what is narrower
        self._merge(work, files)
        self._hash_the_rest()

    def recipe(self, method: str, parameters: Mapping[str, Any]) -> Recipe:
        """The complete recipe of a merge of these models, of which those bytes are read that nobody has read yet.

        Raises:
            InputError: as `Bank.recipe`.
        """
        self._hash_the_rest()
        completed = complete_parameters(method, parameters, self.specialists, self.layout.num_layers)
        base, *others = self._worker.models
        models = dict(zip(self.specialists, others, strict=True))
        return Recipe(
            method=method,
            method_source=method_source(method),
            parameters=completed,
            base=str(base.ref),
            specialists={name: str(model.ref) for name, model in models.items()},
            base_digest=base.digest(),
            specialist_digests={name: model.digest() for name, model in models.items()},
            merged=base.merged_parts,
            calibration=calibration_record(self._calibrator, method, completed),
        )

    def magnitude_histograms(self) -> Tensor:
        """Exact counts of the magnitudes of every task vector, int64 [K, 32768]; made once."""
        if self._histograms is None:
            counts = torch.zeros(len(self.specialists), MAGNITUDES, dtype=torch.int64)
            for found in self._over_all("counting magnitudes", "count"):
                counts += found
            self._histograms = counts
        return self._histograms

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over the entries."""
        self._worker.compile(function, scalars, torch.float32)
        return sum(self._over_all("electing", "total", function, scalars))

    def magnitudes(self) -> Mapping[str, Sequence[Magnitudes]]:
        """Exact counts of the magnitudes of each task vector in each merged tensor, by its name; made once."""
        if self._magnitudes is None:
            runs = window_runs(self.layout.merged, self._worker.window)
            self._magnitudes = magnitudes_by_tensor(self._over(runs, "counting magnitudes", "magnitudes"))
        return self._magnitudes

    def values(
        self, function: BlockFunction, scalars: Mapping[str, Sequence[Scalars]]
    ) -> Mapping[str, Sequence[Magnitudes]]:
        """Magnitudes of an element-wise function in each merged tensor."""
        self._worker.compile(function, next(iter(scalars.values()))[0], torch.bfloat16)
        runs = window_runs(self.layout.merged, self._worker.window)
        return magnitudes_by_tensor(self._over(runs, "counting", "values", function, scalars))

    def totals(self, function: BlockFunction, scalars: Sequence[Scalars]) -> Mapping[str, Sequence[int]]:
        """Sums of an element-wise function over each merged tensor."""
        self._worker.compile(function, scalars[0], torch.float32)
        runs = window_runs(self.layout.merged, self._worker.window)
        return totals_by_tensor(self._over(runs, "counting", "totals", function, scalars))

    def inner_products(self) -> Mapping[str, InnerProducts]:
        """Exact inner products of base and task vectors, by name of each merged tensor; made once."""
        if self._inner_products is None:
            runs = window_runs(self.layout.merged, self._worker.whole_blocks)
            self._inner_products = products_by_tensor(self._over(runs, "comparing", "inner_products"))
        return self._inner_products

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """A statistic on disk, made first if it is not there."""
        self._hash_the_rest()  # which it begins with
        return require_calibrator(self._calibrator, request.kind).statistics(request)

    def transformed(self, transform: Transform) -> tuple[Calibrated, ...]:
        """What a transform makes of the task vectors, made first if it is not there."""
        self._hash_the_rest()
        return transformed(self._worker, self.layout, transform, self._progress)

    def _merge(self, work: Work, files: TensorWriter) -> None:
        """Merge what is merged entry by entry, copy what is the base's, and solve for the rest."""
        # Here, where Ctrl-C ends a compiler at once.
        self._worker.compile(work.kernel, work.scalars[0], work.out_dtype)
        indices = {(tensor.name, tensor.part): index for index, tensor in enumerate(self.layout.merged)}
        merged = {tensor.name for tensor in self.layout.merged}
        solved = work.solver or ()
        runs = window_runs([one for one in self.layout.merged if one.name not in solved], self._worker.window)
        base, moved = self._worker.models[0].tensors, len(self._worker.models) + 1
        work, indices, files = map(self._calls.shared, (work, indices, files))
        calls = [
            Call("copy", (name, files), 2 * info.num_bytes)
            for name, info in base.items()
            if name not in merged and info.numel
        ]
        calls += [Call("merge", (work, indices, files, run), moved * _num_bytes(run)) for run in runs]
        for group in getattr(solved, "groups", ()):
            num_bytes = moved * sum(base[name].numel for name in group) * _ITEM_BYTES
            calls.append(Call("solve", (work, [group], files), num_bytes))
        deque(self._run("merging", calls), maxlen=0)

    def _hash_the_rest(self) -> None:
        """Have all digests, reading what nobody has read."""
        models = [(i, model) for i, model in enumerate(self._worker.models) if isinstance(model, ReadOnce)]
        rest = [(num_bytes, index, name) for index, model in models for name, num_bytes in model.unread().items()]
        calls = [Call("hash_rest", (index, name), num_bytes) for num_bytes, index, name in sorted(rest, reverse=True)]
        deque(self._run("hashing what is not merged", calls), maxlen=0)
        for _, model in models:
            model.remember()

    def _over_all(self, what: str, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a method of the worker with all runs of the entries that count for statistics."""
        runs = chain(*(window_runs(part, self._worker.window) for part in (self.layout.merged, self.layout.streamed)))
        return self._over(runs, what, method, *arguments)

    def _over(self, runs: Iterable[Sequence[Window]], what: str, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a method of the worker with each run."""
        models = len(self._worker.models)
        return self._run(what, [Call(method, (*arguments, run), models * _num_bytes(run)) for run in runs])

    def _run(self, what: str, calls: Sequence[Call]) -> Iterator[Any]:
        meter = Meter(self._progress, what, sum(call.num_bytes for call in calls))
        return self._calls.run(self._worker, calls, meter) if calls else iter(())


def _num_bytes(run: Sequence[Window]) -> int:
    return sum(window.size for window in run) * _ITEM_BYTES
