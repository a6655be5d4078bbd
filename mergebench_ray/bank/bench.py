"""How fast the fused passes are, beside a plain copy of the same arrays in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.layout import Layout, LayoutTensor, Overlap, layer_of
from mergebench_ray.bank.shard import usable_threads
from mergebench_ray.bank.work import Work, plan_work, segments_of
from mergebench_ray.kernels import BlockFunction, Pass, Scalars, magnitude_histogram
from mergebench_ray.methods import complete_parameters, get_method, method_names, parse_parameters

_CPU = torch.device("cpu")
_HIDDEN, _KEYS, _INNER, _LAYERS = 576, 192, 1536, 30
_SHAPES = {
    "input_layernorm": (_HIDDEN,),
    "mlp.down_proj": (_HIDDEN, _INNER),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "post_attention_layernorm": (_HIDDEN,),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.v_proj": (_KEYS, _HIDDEN),
}


def measure_methods(
    methods: Sequence[str] | None = None, *, layers: int = _LAYERS, threads: int | None = None, rounds: int = 7
) -> dict[str, dict[str, Any]]:
    """Time every method's pass on random weights in the shape of SmolLM2-135M, with five specialists.

    Args:
        methods: names; None for all.
        layers: layers of the model; 30 give the 106 M merged parameters of SmolLM2-135M.
        threads: threads; None for all cores.
        rounds: rounds; each times the copy, then the method compiled, then eagerly.

    Returns:
        for each method `seconds` and `eager_seconds` (medians), `prepare_seconds` (what another density costs once the
        histograms are made), `bytes` read and written by the pass, `copy_bytes_per_second`, `ratio_to_copy` and
        `eager_ratio_to_copy` (bytes per second over those of the copy).
    """
    arrays = _Arrays(_smollm2_layout(layers), [f"specialist {k}" for k in range(5)], threads or usable_threads())
    return {name: _measure(name, arrays, rounds) for name in methods or method_names()}


class _Arrays:
    """A bank's arrays in this process, filled with random numbers; also answers for `Statistics`."""

    def __init__(self, layout: Layout, specialists: Sequence[str], threads: int) -> None:
        self.layout = layout
        self.specialists = specialists
        self.threads = threads
        generator = torch.Generator().manual_seed(0)
        self.base = _random(layout.size, 0.05, generator)
        self.vectors = [_random(layout.size, 0.002, generator) for _ in specialists]
        self.out = torch.zeros_like(self.base)
        self._histograms: Tensor | None = None
        self._totals: dict[BlockFunction, Pass] = {}

    @property
    def num_entries(self) -> int:
        return self.layout.size

    def magnitude_histograms(self) -> Tensor:
        if self._histograms is None:
            self._histograms = torch.stack([magnitude_histogram(vector) for vector in self.vectors])
        return self._histograms

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        if function not in self._totals:
            self._totals[function] = Pass(function, len(self.vectors), scalars, torch.float32, _CPU)
        return self._totals[function].total(self.base, self.vectors, scalars, self.threads)

    def copy(self) -> None:
        """Copy every array into the output: plain reads and writes of the same memory."""
        for source in (self.base, *self.vectors):
            self.out.copy_(source)


def _measure(name: str, arrays: _Arrays, rounds: int) -> dict[str, Any]:
    method = get_method(name)
    parameters = parse_parameters(name, complete_parameters(name, {}, arrays.specialists, arrays.layout.num_layers))
    prepared = method.prepare(parameters, arrays)
    work = plan_work(arrays.layout, method, parameters, prepared, arrays.specialists, {})
    compiled, eager = (_merge(work, arrays, compiled) for compiled in (True, False))
    torch.set_num_threads(arrays.threads)
    for warm_up in (arrays.copy, compiled, eager):
        warm_up()
    times = [(_seconds(arrays.copy), _seconds(compiled), _seconds(eager)) for _ in range(rounds)]
    copy_seconds, seconds, eager_seconds = (median(column) for column in zip(*times, strict=True))
    arrays_read = len(arrays.vectors) + 1
    num_bytes = (arrays_read + 1) * arrays.layout.size * 2
    copy_rate = 2 * arrays_read * arrays.layout.size * 2 / copy_seconds
    return {
        "seconds": seconds,
        "eager_seconds": eager_seconds,
        "prepare_seconds": _seconds(lambda: method.prepare(parameters, arrays)),
        "bytes": num_bytes,
        "copy_bytes_per_second": copy_rate,
        "ratio_to_copy": num_bytes / seconds / copy_rate,
        "eager_ratio_to_copy": num_bytes / eager_seconds / copy_rate,
    }


def _merge(work: Work, arrays: _Arrays, compiled: bool) -> Callable[[], None]:
    run = Pass(work.kernel, len(arrays.vectors), work.scalars[0], torch.bfloat16, _CPU, compiled)
    todo = [(Overlap(tensor, tensor.start, tensor.stop), i) for i, tensor in enumerate(arrays.layout.merged)]
    segments = segments_of(work, todo, 0)
    return lambda: run.run(arrays.base, arrays.vectors, segments, arrays.out, arrays.threads)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _random(size: int, scale: float, generator: torch.Generator) -> Tensor:
    values = torch.empty(size, dtype=torch.bfloat16)
    for block in values.split(1 << 22):
        block.copy_(torch.randn(len(block), generator=generator) * scale)
    return values


def _smollm2_layout(layers: int) -> Layout:
    names = {f"model.layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in _SHAPES.items()}
    names["model.norm.weight"] = (_HIDDEN,)
    tensors = []
    start = 0
    for name, shape in names.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(LayoutTensor(name, shape, layer_of(name), 0, start, count))
        start += count
    return Layout(tuple(tensors), (), layers)
