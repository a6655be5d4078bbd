"""The compiled pass and the eager one give the same bits, for every number that bf16 can hold."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergebench_ray.kernels import Block, BlockFunction, Magnitudes, Pass, Scalars, Segment, warn_not_compiled
from mergebench_ray.kernels.block import scalar_tensors
from mergebench_ray.kernels.compilers import NotCompiledYetError, compiling_here, compiling_nothing
from mergebench_ray.kernels.forms import ALIGNMENT
from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    InnerProducts,
    TensorPlace,
    Transform,
    complete_parameters,
    get_method,
    method_names,
    parse_parameters,
)

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]
LENGTH = 150_003
WITH_OWN_KERNEL = list({get_method(name).merge_block: name for name in reversed(method_names())}.values())
"""Methods that share an element-wise function are one here."""


class SomeStatistics:
    """Thresholds in the middle of what `arrays` holds."""

    specialists = NAMES
    num_entries = 3

    def magnitude_histograms(self) -> Tensor:
        histogram = torch.zeros(1 << 15, dtype=torch.int64)
        histogram[torch.tensor([0.001, 0.01, 0.1], dtype=torch.bfloat16).view(torch.int16).long()] = 1
        return histogram.repeat(len(NAMES), 1)

    def magnitudes(self) -> Mapping[str, list[Magnitudes]]:
        return {"w": [Magnitudes.of(torch.tensor([0.001, 0.01, 0.1], dtype=torch.bfloat16))] * len(NAMES)}

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        return -1

    def values(self, function: BlockFunction, scalars: Mapping[str, list[Scalars]]) -> Mapping[str, list[Magnitudes]]:
        return {name: self.magnitudes()["w"][: len(some)] for name, some in scalars.items()}

    def totals(self, function: BlockFunction, scalars: list[Scalars]) -> Mapping[str, list[int]]:
        return {"w": [1] * len(scalars)}

    def inner_products(self) -> Mapping[str, InnerProducts]:
        return {"w": [[2.0 if row == column else 0.5 for column in range(4)] for row in range(4)]}

    def transformed(self, transform: Transform) -> tuple[Calibrated, ...]:
        return ()

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        return ()


def arrays(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Base and task vectors: ordinary numbers, then every finite bf16 number, denormals and zeros of both signs."""
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite() & (every.abs() < 1e30)]
    rows = []
    for k in range(len(NAMES) + 1):
        row = torch.randn(length, generator=generator) * (0.3 if k == 0 else 0.02)
        row = row.bfloat16()
        row[: len(every)] = every[torch.randperm(len(every), generator=generator)][:length]
        rows.append(row)
    return rows[0], torch.stack(rows[1:])


def kernel_and_scalars(name: str, parameters: Mapping[str, Any], tensor: str = "w") -> tuple[BlockFunction, Scalars]:
    method = get_method(name)
    parsed = parse_parameters(name, complete_parameters(name, parameters, NAMES, 2))
    prepared = method.prepare(parsed, SomeStatistics())
    return method.kernel(parsed), method.scalars(parsed, prepared, TensorPlace(tensor, 0, 2), NAMES)


def merge(
    run: Pass,
    scalars: Scalars,
    segments: list[tuple[int, int]] | None = None,
    threads: int = 1,
    kernel: BlockFunction | None = None,
) -> Tensor:
    base, vectors = arrays()
    out = torch.full((LENGTH,), 7.0, dtype=torch.bfloat16)
    cuts = segments or [(0, LENGTH)]
    companions: list[Tensor] = []
    if kernel is not None and kernel.companion is not None:
        companions = list(vectors.abs().to(kernel.companion)[: kernel.num_companions(len(NAMES))])
    run.run(base, vectors, [Segment(start, stop, start, scalars) for start, stop in cuts], out, threads, companions)
    return out.view(torch.int16)


@pytest.fixture(scope="module")
def compiled_two_at_a_time(request: pytest.FixtureRequest) -> None:
    """Fill the cache with the methods' kernels, in two processes: each takes 5 s, a process's first one 15 s."""
    asked_for = "".join(item.name for item in request.session.items)
    names = [name for name in WITH_OWN_KERNEL if f"[{name}]" in asked_for and not compile_method(name, known=True)]
    compiling = [subprocess.Popen([sys.executable, __file__, *share]) for share in (names[0::2], names[1::2]) if share]
    assert [process.wait() for process in compiling] == [0] * len(compiling)


def compile_method(name: str, known: bool = False) -> bool:
    """Compile a method's kernel, here; or see whether that was done before."""
    kernel, scalars = kernel_and_scalars(name, {})
    try:
        with compiling_nothing() if known else compiling_here():
            return Pass(kernel, len(NAMES), scalars, torch.bfloat16, CPU).is_compiled
    except NotCompiledYetError:
        return False


def test_scalars_are_floats_where_those_of_any_tensor_are() -> None:
    first, second = scalar_tensors([{"zero": [1]}, {"zero": [0.5]}], CPU)
    assert (first["zero"].item(), second["zero"].item()) == (1.0, 0.5)


def test_rows_of_scalars_begin_on_sixteen_bytes() -> None:
    rows = scalar_tensors([{"three": [1.0, 2.0, 3.0], "five": [1, 2, 3, 4, 5]}] * 3, CPU)
    assert [value.data_ptr() % ALIGNMENT for row in rows for value in row.values()] == [0] * 9
    assert rows[2]["five"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.compiler
@pytest.mark.timeout(1800)  # from nothing some thirty kernels are compiled, beside other work
@pytest.mark.parametrize("name", WITH_OWN_KERNEL)
@pytest.mark.usefixtures("compiled_two_at_a_time")
def test_compiled_and_eager_give_the_same_bits(name: str) -> None:
    kernel, scalars = kernel_and_scalars(name, {})
    by_compiler = Pass(kernel, len(NAMES), scalars, torch.bfloat16, CPU, callers=3)
    eager = Pass(kernel, len(NAMES), scalars, torch.bfloat16, CPU, compiled=False)
    assert by_compiler.is_compiled
    expected = merge(eager, scalars, kernel=kernel)
    # Cuts at odd places give vector bodies, tails and starts that are not aligned; 1 and 2 are the shortest.
    cuts = [(0, 1), (1, 3), (3, 20_000), (20_000, 20_017), (20_017, LENGTH)]
    for segments in (None, cuts):
        for threads in (1, 2, 3):
            for run in (by_compiler, eager):
                assert torch.equal(merge(run, scalars, segments, threads, kernel), expected)


@pytest.mark.compiler
@pytest.mark.usefixtures("compiled_here")
def test_the_total_is_the_same_compiled_eagerly_and_by_hand() -> None:
    from mergebench_ray.methods.ties import elected_sign

    base, vectors = arrays(700_001)
    scalars = {"threshold": [0.01, 0.02, 0.015]}
    limits = torch.tensor(scalars["threshold"])
    trimmed = [torch.where(v.float().abs() >= limits[k], v.float(), 0.0) for k, v in enumerate(vectors)]
    expected = int(((trimmed[0] + trimmed[1]) + trimmed[2]).sign().sum())
    for use_compiler in (True, False):
        run = Pass(BlockFunction(elected_sign), len(NAMES), scalars, torch.float32, CPU, compiled=use_compiler)
        assert run.is_compiled == use_compiler
        assert run.total(base, vectors, scalars, threads=2) == expected


def test_without_a_compiler_there_is_one_warning_and_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path))
    warn_not_compiled.cache_clear()
    kernel, scalars = kernel_and_scalars("task_arithmetic", {})
    with caplog.at_level(logging.WARNING):
        runs = [Pass(kernel, len(NAMES), scalars, torch.bfloat16, CPU) for _ in range(3)]
    assert [record.message for record in caplog.records] == [
        "no C++ compiler (no-such-compiler) found: merging runs without compiled kernels, "
        "with the same results but slower"
    ]
    assert not runs[0].is_compiled
    base, vectors = arrays()
    total = (vectors[0].float() * 0.4 + vectors[1].float() * 0.4) + vectors[2].float() * 0.4
    assert torch.equal(merge(runs[0], scalars), (base.float() + total).bfloat16().view(torch.int16))


def test_a_compiled_kernel_is_kept_and_other_constants_are_another_kernel() -> None:
    first, scalars = kernel_and_scalars("ties", {"merge_func": "sum"})
    second, _ = kernel_and_scalars("ties", {"merge_func": "max"})
    kernels = [Pass(kernel, 3, scalars, torch.bfloat16, CPU, compiled=False) for kernel in (first, first, second)]
    signatures = [run._eager.signature for run in kernels]
    assert signatures[0] == signatures[1] != signatures[2]


def test_only_the_segments_are_written() -> None:
    kernel, scalars = kernel_and_scalars("model_soup", {})
    out = merge(Pass(kernel, 3, scalars, torch.bfloat16, CPU, compiled=False), scalars, [(10, 20), (50, 40_000)])
    untouched = torch.full((), 7.0, dtype=torch.bfloat16).view(torch.int16)
    assert bool((out[:10] == untouched).all())
    assert bool((out[20:50] == untouched).all())
    assert bool((out[40_000:] == untouched).all())
    assert bool((out[10:20] != untouched).any())


def test_a_run_that_is_longer_than_int32_reaches_needs_no_positions() -> None:
    out = torch.zeros(8, dtype=torch.bfloat16)
    run = Pass(BlockFunction(everything), 1, {}, torch.bfloat16, CPU, compiled=False)
    run.run(torch.ones_like(out), [torch.ones_like(out)], [Segment(0, 8, 1 << 31, {})], out, threads=1)
    assert out.tolist() == [2.0] * 8


def without_what_fell(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    return block.base + block.keep_where(block.task_vectors[0] > 0, block.task_vectors[0])


def everything(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    return block.base + block.task_vectors[0]


@pytest.mark.parametrize(
    ("function", "compiled", "zero"),
    [
        (without_what_fell, False, 0.0),
        pytest.param(without_what_fell, True, 0.0, marks=pytest.mark.compiler),
        (everything, False, -0.0),
        pytest.param(everything, True, -0.0, marks=pytest.mark.compiler),
    ],
)
@pytest.mark.usefixtures("compiled_here")
def test_a_zero_is_positive_where_entries_were_dropped_and_else_as_arithmetic_has_it(
    function: Callable[..., Tensor], zero: float, compiled: bool
) -> None:
    base = torch.tensor([-0.0] * 40 + [1.0]).bfloat16()
    vector = torch.tensor([-0.0] * 40 + [2.0]).bfloat16()
    if function is without_what_fell:
        vector[:20] = -1.0
    out = torch.empty_like(base)
    Pass(BlockFunction(function), 1, {}, torch.bfloat16, CPU, compiled=compiled).run(
        base, [vector], [Segment(0, 41, 0, {})], out, threads=1
    )
    expected = torch.tensor([zero] * 40 + [3.0]).bfloat16()
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))


if __name__ == "__main__":
    compiled = {name: compile_method(name) for name in sys.argv[1:]}
    sys.exit(not all(compiled.values()))
