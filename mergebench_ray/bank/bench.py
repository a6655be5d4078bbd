"""How fast the fused passes are, beside a plain copy of the same arrays in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from mergebench_ray.bank.rehearsal import NUM_LAYERS, RehearsalArrays, compiled_ahead, merge_pass, smollm2_layout
from mergebench_ray.bank.work import plan_work
from mergebench_ray.machine import usable_cores
from mergebench_ray.methods import complete_parameters, get_method, method_names, parse_parameters


def measure_methods(
    methods: Sequence[str] | None = None, *, layers: int = NUM_LAYERS, threads: int | None = None, rounds: int = 7
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
    names = methods or method_names()
    specialists = [f"specialist {k}" for k in range(5)]
    merged = {name: tuple(get_method(name).Parameters.as_many(specialists)) for name in names}
    for some in sorted(set(merged.values())):
        with compiled_ahead([(name, {}) for name in names if merged[name] == some], some):
            pass
    arrays = RehearsalArrays(smollm2_layout(layers), specialists, threads or usable_cores())
    return {name: _measure(name, arrays, rounds) for name in names}


def _measure(name: str, arrays: RehearsalArrays, rounds: int) -> dict[str, Any]:
    method = get_method(name)
    arrays = arrays.of(method.Parameters.as_many(arrays.specialists))
    parameters = parse_parameters(name, complete_parameters(name, {}, arrays.specialists, arrays.layout.num_layers))
    prepared = method.prepare(parameters, arrays)
    work = plan_work(arrays.layout, method, parameters, prepared, arrays.specialists, {})
    compiled, eager = (merge_pass(work, arrays, compiled=compiled) for compiled in (True, False))
    torch.set_num_threads(arrays.threads)
    for warm_up in (arrays.copy, compiled, eager):
        warm_up()
    times = [(_seconds(arrays.copy), _seconds(compiled), _seconds(eager)) for _ in range(rounds)]
    copy_seconds, seconds, eager_seconds = (median(column) for column in zip(*times, strict=True))
    arrays_read = len(arrays.vectors) + 1
    beside = sum(array.itemsize for array in arrays.companions(work.kernel))
    num_bytes = ((arrays_read + 1) * 2 + beside) * arrays.layout.size
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


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
