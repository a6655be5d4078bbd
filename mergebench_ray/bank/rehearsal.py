"""A merge rehearsed on made-up weights in one process: to compile its passes ahead of time, or to time them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.layout import Layout, LayoutTensor, Overlap
from mergebench_ray.bank.work import Work, plan_work, segments_of
from mergebench_ray.families import family_of
from mergebench_ray.helper_process import helper_process
from mergebench_ray.kernels import BlockFunction, Magnitudes, Pass, Scalars, magnitude_histogram
from mergebench_ray.kernels.compilers import (
    compiler_problem,
    compiling_here,
    compiling_nothing,
)
from mergebench_ray.machine import usable_cores
from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    InnerProducts,
    Transform,
    complete_parameters,
    get_method,
    parse_parameters,
)
from mergebench_ray.methods.outside import add_files, outside_files
from mergebench_ray.outside_code import OutsideCode

_CPU = torch.device("cpu")
NUM_LAYERS = 30  # with the widths below, the 106 M merged parameters of SmolLM2-135M
_SMOLLM2 = (576, 192, 1536)
_FEW = (64, 64, 64)  # what is compiled is for any number of entries

Merge = tuple[str, Mapping[str, Any]]


@contextmanager
def compiled_ahead(merges: Iterable[Merge], specialists: Sequence[str]) -> Iterator[None]:
    """Compile what merges will run while the block lasts, in processes of their own that have ended when it ends.

    Around what comes before the weights, it keeps the compiler's memory from standing beside them. Should it fail, the
    bank compiles by itself.

    Args:
        merges: methods and their hyper-parameters; those that are not compiled yet are shared by two processes.
        specialists: sorted names.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        processes = []
        for index, share in enumerate(_shares(not_compiled_yet(merges, specialists))):
            files = [(code.path, code.source) for code in outside_files(method for method, _ in share)]
            task = Path(folder) / f"task-{index}.json"
            task.write_text(json.dumps([files, share, list(specialists)]), encoding="utf-8")
            processes.append(stack.enter_context(helper_process(__name__, str(task))))
        yield
        for process in processes:
            process.wait()


def not_compiled_yet(merges: Iterable[Merge], specialists: Sequence[str]) -> list[Merge]:
    """Those of the merges whose kernels are not known by their names; none where there is no compiler."""
    if compiler_problem() is not None:
        return []
    missing: list[Merge] = []
    with compiling_nothing():
        for method, parameters in merges:
            try:
                _compile(method, parameters, specialists)
            except Exception:  # whatever else it is, merging will tell
                missing.append((method, dict(parameters)))
    return missing


def _shares(merges: Sequence[Merge]) -> list[Sequence[Merge]]:
    return [share for share in (merges[0::2], merges[1::2]) if share]


def _begin(files: Iterable[tuple[str, str]], merges: Iterable[Merge], specialists: Sequence[str]) -> None:
    add_files(OutsideCode(path, source) for path, source in files)
    with compiling_here():
        for method, parameters in merges:
            with suppress(Exception):  # merging will tell, and the next one may do
                _compile(method, parameters, specialists)


def _compile(method: str, parameters: Mapping[str, Any], specialists: Sequence[str]) -> None:
    chosen = get_method(method)
    checked = parse_parameters(method, complete_parameters(method, parameters, specialists, NUM_LAYERS))
    arrays = RehearsalArrays(llama_layout(llama_shapes(1, *_FEW), 1), specialists, usable_cores())
    prepared = chosen.prepare(checked, arrays)
    merge_pass(plan_work(arrays.layout, chosen, checked, prepared, specialists, {}), arrays)


class RehearsalArrays:
    """A bank's arrays in this process, filled with random numbers; also answers for `Statistics`."""

    def __init__(self, layout: Layout, specialists: Sequence[str], threads: int, device: torch.device = _CPU) -> None:
        self.layout = layout
        self.specialists = specialists
        self.threads = threads
        self.device = device
        generator = torch.Generator(device).manual_seed(0)
        self.base = _random(layout.size, 0.05, generator)
        self.vectors = [_random(layout.size, 0.002, generator) for _ in specialists]
        self.out = torch.zeros_like(self.base)
        self._histograms: Tensor | None = None
        self._magnitudes: Mapping[str, Sequence[Magnitudes]] | None = None
        self._totals: dict[BlockFunction, Pass] = {}

    def of(self, specialists: Sequence[str]) -> RehearsalArrays:
        """The same arrays with the first few specialists alone."""
        if len(specialists) == len(self.specialists):
            return self
        some = copy(self)
        some.specialists, some.vectors = specialists, self.vectors[: len(specialists)]
        some._histograms, some._magnitudes, some._totals = None, None, {}
        return some

    @property
    def num_entries(self) -> int:
        """Entries of a task vector."""
        return self.layout.size

    def magnitude_histograms(self) -> Tensor:
        """Exact counts of the magnitudes, int64 [K, 32768]; made once."""
        if self._histograms is None:
            self._histograms = torch.stack([magnitude_histogram(vector) for vector in self.vectors])
        return self._histograms

    def magnitudes(self) -> Mapping[str, Sequence[Magnitudes]]:
        """Those of each tensor; made once."""
        if self._magnitudes is None:
            self._magnitudes = {
                tensor.name: [Magnitudes.of(vector[tensor.start : tensor.stop]) for vector in self.vectors]
                for tensor in self.layout.merged
            }
        return self._magnitudes

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over the entries."""
        if function not in self._totals:
            self._totals[function] = Pass(function, len(self.vectors), scalars, torch.float32, self.device)
        return self._totals[function].total(self.base, self.vectors, scalars, self.threads)

    def values(
        self, function: BlockFunction, scalars: Mapping[str, Sequence[Scalars]]
    ) -> Mapping[str, Sequence[Magnitudes]]:
        """Stand for those of the function."""
        return {name: [one[0]] * len(scalars[name]) for name, one in self.magnitudes().items()}

    def totals(self, function: BlockFunction, scalars: Sequence[Scalars]) -> Mapping[str, Sequence[int]]:
        """Stand for those of each tensor."""
        return {tensor.name: [tensor.count // 2] * len(scalars) for tensor in self.layout.merged}

    def inner_products(self) -> Mapping[str, InnerProducts]:
        """Stand for those of unlike models of one length."""
        count = len(self.specialists) + 1
        one = [[1.0 if row == column else 0.5 for column in range(count)] for row in range(count)]
        return dict.fromkeys((tensor.name for tensor in self.layout.merged), one)

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """Stands for files that are not there; `companions` makes up their content."""
        return tuple(Calibrated(Path(), name) for name in self.specialists)

    def transformed(self, transform: Transform) -> tuple[Calibrated, ...]:
        """Stands for files that are not there, as `calibrated` does."""
        return tuple(Calibrated(Path(), name) for name in self.specialists)

    def companions(self, kernel: BlockFunction) -> list[Tensor]:
        """What a function reads beside the task vectors, filled with random zeros and ones."""
        count = kernel.num_companions(len(self.vectors))
        if not count:
            return []
        generator = torch.Generator().manual_seed(1)
        ones = torch.randint(0, 2, (self.layout.size,), generator=generator, dtype=torch.uint8)
        return [ones.to(self.device, kernel.companion).roll(index) for index in range(count)]

    def copy(self) -> None:
        """Copy every array into the output: plain reads and writes of the same memory."""
        for source in (self.base, *self.vectors):
            self.out.copy_(source)


def merge_pass(work: Work, arrays: RehearsalArrays, *, compiled: bool = True) -> Callable[[], None]:
    """Compile the pass of a merge; returns the merge itself, to be called any number of times."""
    count, device, callers = len(arrays.vectors), arrays.device, arrays.threads
    run = Pass(work.kernel, count, work.scalars[0], torch.bfloat16, device, compiled, callers)
    todo = [(Overlap(tensor, tensor.start, tensor.stop), i) for i, tensor in enumerate(arrays.layout.merged)]
    segments = segments_of(work, todo, 0)
    companions = arrays.companions(work.kernel)
    return lambda: run.run(arrays.base, arrays.vectors, segments, arrays.out, arrays.threads, companions)


def _random(size: int, scale: float, generator: torch.Generator) -> Tensor:
    values = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    for block in values.split(1 << 22):
        block.copy_(torch.randn(len(block), generator=generator, device=generator.device) * scale)
    return values


def smollm2_layout(layers: int) -> Layout:
    """The merged tensors of a model shaped like SmolLM2-135M."""
    return llama_layout(llama_shapes(layers, *_SMOLLM2), layers)


def llama_shapes(layers: int, hidden: int, keys: int, inner: int) -> dict[str, tuple[int, ...]]:
    """The merged tensors of a Llama: name -> shape.

    Args:
        layers: layers of the model.
        hidden: width of what goes from layer to layer.
        keys: width of all keys together.
        inner: width within the feed-forward blocks.
    """
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (keys, hidden),
    }
    names = {f"model.layers.{index}.{name}.weight": shape for index in range(layers) for name, shape in layer.items()}
    return {**names, "model.norm.weight": (hidden,)}


def llama_layout(shapes: Mapping[str, tuple[int, ...]], layers: int) -> Layout:
    """The layout of those tensors, each of at most 2**30 entries."""
    family = family_of("llama")
    tensors = []
    start = 0
    for name, shape in shapes.items():
        count = prod(shape)
        layer, kind = family.layer_of(name, layers), family.module_kind(name)
        tensors.append(LayoutTensor(name, shape, layer, kind, 0, start, count))
        start += count
    return Layout(tuple(tensors), (), layers)


if __name__ == "__main__":
    _begin(*json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
