"""Compiled kernels live in the cache folder and nowhere else, one for each that would differ."""

from __future__ import annotations

import getpass
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder
from mergebench_ray.kernels import Block, BlockFunction, Pass, compiled, compilers, compiling, eager
from mergebench_ray.kernels.block import scalar_tensors
from mergebench_ray.kernels.compiled_kernel import CompiledKernel
from mergebench_ray.kernels.forms import Form
from mergebench_ray.methods import get_method

CPU = torch.device("cpu")

_CHILD = """
import os, signal, torch
from mergebench_ray.kernels import Pass, Segment
from mergebench_ray.methods import get_method, parse_parameters

kernel = get_method("model_soup").kernel(parse_parameters("model_soup", {}))
scalars = get_method("model_soup").scalars(None, None, None, ["a", "b", "c"])
merge = Pass(kernel, 3, scalars, torch.bfloat16, torch.device("cpu"))
base, *vectors = torch.ones(4, 1000, dtype=torch.bfloat16)
out = torch.zeros_like(base)
merge.run(base, vectors, [Segment(0, 1000, 0, scalars)], out, 1)
assert merge.is_compiled and bool((out == 2).all())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.compiler
def test_a_killed_process_leaves_no_temporary_files_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _CHILD], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    # Should this have compiled the kernel: torch's precompiled headers are in one folder for all processes.
    assert {entry.name for entry in tmp_path.iterdir()} <= {f"torchinductor_{getpass.getuser()}"}


def key(device: torch.device = CPU) -> str:
    compiled._sources.cache_clear()
    return compiled._key("signature", {"coefficient": torch.zeros(2)}, torch.bfloat16, device, Form.ENTRIES)


def test_a_change_of_what_makes_kernels_is_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for path in compiled._SOURCES:
        sources.append(tmp_path / path.name)
        sources[-1].write_bytes(path.read_bytes())
    monkeypatch.setattr(compiled, "_SOURCES", sources)
    keys = [key()]
    for source in sources:
        source.write_text(source.read_text().replace("import torch\n", "import torch as torch\n"))
        keys.append(key())
    monkeypatch.undo()
    assert key() == keys[0]
    assert len(set(keys)) == 1 + len(sources)


def test_a_card_of_another_capability_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key()}
    for capability in [(8, 0), (9, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        keys.add(key(torch.device("cuda", 0)))
    assert len(keys) == 3
    assert key(torch.device("cuda", 1)) in keys


def sum_of_two(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    return block.base + block.task_vectors[0]


def difference_of_two(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    return block.base - block.task_vectors[0]


@pytest.mark.compiler
@pytest.mark.usefixtures("compiled_here")
def test_a_compiled_method_is_found_by_its_sources_without_tracing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("model_soup")
    kernel, scalars = method.kernel(None), {"share": [1.0]}
    assert Pass(kernel, 1, scalars, torch.bfloat16, CPU).is_compiled
    monkeypatch.setattr(eager, "_traced", lambda *_: pytest.fail("traced"))
    assert Pass(kernel, 1, scalars, torch.bfloat16, CPU).is_compiled
    monkeypatch.setattr(compiled, "_all_sources", lambda: "others")
    with pytest.raises(pytest.fail.Exception, match="traced"):
        Pass(kernel, 1, scalars, torch.bfloat16, CPU)


def test_a_function_is_traced_once_in_a_process_and_anew_where_it_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, traced = eager._trace, []
    monkeypatch.setattr(eager, "_trace", lambda *arguments: traced.append(arguments) or trace(*arguments))

    def signature(function: BlockFunction, num_specialists: int, **scalars: Tensor) -> str:
        return eager.EagerKernel(function, num_specialists, {"0.0": torch.zeros(1), **scalars}, CPU).signature

    anew = BlockFunction(lambda block, scalars: block.base + scalars["x"][0])
    assert len({signature(anew, 1, x=torch.ones(2)) for _ in range(3)}) == len(traced) == 1
    assert signature(anew, 2, x=torch.ones(2)) != signature(anew, 1, x=torch.ones(2))
    signature(anew, 1, x=torch.ones(2, dtype=torch.int32))
    signature(anew, 1, x=torch.ones(3))
    assert len(traced) == 4


def scaled_by(block: Block, scalars: dict[str, Tensor], factor: Any) -> Tensor:
    return block.base * (factor[0] if isinstance(factor, list) else factor)


def test_options_that_are_equal_but_written_otherwise_are_traced_apart_and_may_be_of_any_kind() -> None:
    def signature(factor: Any) -> str:
        function = BlockFunction(scaled_by, (("factor", factor),))
        return eager.EagerKernel(function, 1, {"0.0": torch.zeros(1)}, CPU).signature

    whole, half = signature(1), signature(1.0)
    assert whole != half
    assert [signature(1), signature(1.0), signature([1.0])] == [whole, half, half]


@pytest.mark.compiler
@pytest.mark.usefixtures("compiled_here")
def test_a_kernel_with_other_bits_than_plain_torch_is_found() -> None:
    function, dtype = BlockFunction(sum_of_two), torch.bfloat16
    run, (scalars,), form = Pass(function, 1, {}, dtype, CPU), scalar_tensors([{}], CPU), Form.of(function, dtype, CPU)
    assert run.is_compiled
    kernel = cache_folder("kernels") / compiled._key(run._eager.signature, scalars, dtype, CPU, form)
    compiling.try_out(function, kernel, 1, scalars, dtype, form)
    with pytest.raises(SystemExit, match=r"4\d+ of 4\d+ entries differ from what plain torch computes"):
        compiling.try_out(BlockFunction(difference_of_two), kernel, 1, scalars, dtype, form)


@pytest.mark.compiler
@pytest.mark.usefixtures("no_kernels_yet")
def test_a_kernel_that_crashes_is_tried_once_and_leaves_the_eager_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands for the kernel: values are computed, rather than traced, only where one is tried out.
    (tmp_path / "crashes.py").write_text(
        "import os, signal, torch\n"
        "def function(block, scalars):\n"
        "    if type(block.base) is torch.Tensor and len(block.base) > 4000: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return block.base\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = BlockFunction(importlib.import_module("crashes").function)
    expected = "the compiled kernel crashes here (signal 11)"
    assert Pass(function, 1, {}, torch.bfloat16, CPU).problem == expected
    monkeypatch.setattr(compiled, "compile_into_folder", None)
    assert Pass(function, 1, {}, torch.bfloat16, CPU).problem == expected


@pytest.mark.parametrize(
    ("status", "errors", "made", "refused", "text"),
    [
        (-9, "", True, False, "the compiler was killed, perhaps for want of memory"),
        (-11, "", False, False, "compiling failed: exit status -11"),
        (1, "Traceback\nRuntimeError: no space", False, False, "compiling failed: RuntimeError: no space"),
        (-35, "", True, True, "the compiled kernel crashes here (signal 35)"),
        (1, "7 of 9 entries differ", True, True, "the compiled kernel cannot be used: 7 of 9 entries differ"),
    ],
)
def test_what_went_wrong_is_said_and_only_a_wrong_kernel_is_refused_for_good(
    status: int, errors: str, made: bool, refused: bool, text: str
) -> None:
    error = compilers._failure(status, errors, made)
    assert (str(error), isinstance(error, compilers.RefusedError)) == (text, refused)


@pytest.mark.compiler
@pytest.mark.parametrize(("device", "runners"), [("cpu", 3), ("cuda", 1)])
def test_a_kernel_has_a_runner_for_each_caller_but_on_a_gpu_where_runs_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, runners: int
) -> None:
    """With more of them than one torch refuses to run without waiting."""
    asked: list[Any] = []
    monkeypatch.setattr("torch._C._aoti.AOTIModelPackageLoader", lambda *arguments: asked.extend(arguments))
    CompiledKernel(tmp_path, torch.device(device), False, callers=3)
    assert asked[2:4] == [device != "cpu", runners]
