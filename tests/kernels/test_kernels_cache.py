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

import pytest
import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder
from mergebench_ray.kernels import Block, BlockFunction, Pass, compiled
from mergebench_ray.kernels.block import scalar_tensors
from mergebench_ray.kernels.compiled import CannotCompileError
from mergebench_ray.kernels.forms import Form

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
def test_a_compiled_kernel_is_held_against_plain_torch_before_it_is_kept() -> None:
    function, dtype = BlockFunction(sum_of_two), torch.bfloat16
    run, (scalars,), form = Pass(function, 1, {}, dtype, CPU), scalar_tensors([{}], CPU), Form.of(function, dtype, CPU)
    assert run.is_compiled
    package = cache_folder("kernels") / compiled._key(run._eager.signature, scalars, dtype, CPU, form)
    compiled._try_out(function, package, 1, scalars, dtype, form)
    with pytest.raises(CannotCompileError, match="entries differ from what plain torch computes"):
        compiled._try_out(BlockFunction(difference_of_two), package, 1, scalars, dtype, form)


@pytest.mark.compiler
def test_a_kernel_that_crashes_where_it_is_tried_leaves_the_eager_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashes.py").write_text(
        "import os, signal\n"
        "if 'CRASH' in os.environ: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def function(block, scalars): return block.base\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("crashes").function
    monkeypatch.setenv("CRASH", "1")
    run = Pass(BlockFunction(function), 1, {}, torch.bfloat16, CPU)
    assert not run.is_compiled
    assert run.problem == "a compiled kernel crashes here (SIGSEGV)"
