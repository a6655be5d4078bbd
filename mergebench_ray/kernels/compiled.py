"""Compiled kernels: Inductor ahead of time, once per function, kept as folders of files.

`torch.compile` would compile the same code, but pays for its warm-up in every process and guards every call. Here the
function is exported with a free length, compiled in a child process (so that the compiler's memory never stands
beside the weights), and loaded from the cache in milliseconds. The package is kept unpacked: torch would unpack a
packed one into a temporary folder for each process, and leave it behind when the process is killed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.files import whole_folder
from mergebench_ray.helper_process import helper_process
from mergebench_ray.kernels import block, pairs
from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.pairs import WORD, WORDS, first_entries, rounded_words, second_entries
from mergebench_ray.kernels.threads import torch_threads

logger = logging.getLogger(__name__)

INDUCTOR_OPTIONS: dict[str, Any] = {
    # Fused multiply-adds and reordered sums would round differently from eager code, and from each other between
    # the vectorised body of a loop and its tail.
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    # The number of threads is the caller's at run time, not the one at compile time.
    "cpp.dynamic_threads": True,
    # What is around the loop, checks of arguments above all, takes longer to optimise than it ever will to run.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # One loop body from loads to store. Where Inductor cuts a function at values that are read often, its loop takes
    # half as many bf16 entries at a time, by way of the stack, and takes twice as long.
    "realize_opcount_threshold": 1 << 20,
    "realize_reads_threshold": 1 << 20,
    "realize_acc_reads_threshold": 1 << 20,
}

_SOURCES = tuple(Path(str(path)) for path in (__file__, block.__file__, pairs.__file__))
"""A change of these files is another kernel: they say what is exported, and how it is compiled."""

_SMALL = 1 << 15


class CannotCompileError(Exception):
    """There is no compiler, or it failed."""


@cache
def warn_not_compiled(problem: str) -> None:
    """Say once that merging goes on without compiled kernels, and why."""
    logger.warning("%s: merging runs without compiled kernels, with the same results but slower", problem)


class CompiledKernel:
    """A compiled `BlockFunction`, from the folder of its package; called as `EagerKernel` is."""

    def __init__(self, folder: Path, device: torch.device, uses_position: bool) -> None:
        from torch._C._aoti import AOTIModelPackageLoader

        index = -1 if device.type == "cpu" else (device.index or 0)
        self._loader = AOTIModelPackageLoader(str(folder), "model", False, 1, index)
        self._uses_position = uses_position

    def __call__(
        self,
        arrays: Sequence[Tensor],
        start: int,
        scalars: dict[str, Tensor],
        out: Tensor,
        threads: int,
    ) -> None:
        """Run over [n], n >= 2; arguments as for `EagerKernel`."""
        position = [torch.tensor([start], dtype=torch.int32, device=out.device)] if self._uses_position else []
        # Waking threads for a norm's few hundred entries takes longer than computing them.
        with torch_threads(threads if len(out) > _SMALL else 1):
            self._loader.run([*arrays, *position, *scalars.values(), out])


class _Exported(torch.nn.Module):
    """The function with flat arguments, as `torch.export` wants it."""

    def __init__(self, function: BlockFunction, num_arrays: int, names: Sequence[str], paired: bool) -> None:
        super().__init__()
        self._function = function
        self._num_arrays = num_arrays
        self._names = names
        self._paired = paired

    def forward(self, *arguments: Tensor) -> None:
        """Take the arrays, the start where positions are used, scalars in order, out."""
        arrays = arguments[: self._num_arrays]
        *small, out = arguments[self._num_arrays :]
        if self._function.uses_position:
            start, *small = small
            lanes = torch.arange(out.shape[0], dtype=torch.int32, device=out.device)
        else:
            lanes = start = torch.zeros(1, dtype=torch.int32, device=out.device)
        scalars = dict(zip(self._names, small, strict=True))
        if not self._paired:
            out.copy_(self._function.values(arrays, lanes, start, scalars))
            return
        first, second = (
            self._function.values([part(array) for array in arrays], lanes + lanes, start + place, scalars)
            for place, part in enumerate((first_entries, second_entries))
        )
        out.copy_(rounded_words(first, second))


def compile_kernel(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    signature: str,
    paired: bool,
) -> CompiledKernel:
    """Load the compiled form from the cache, compiling it first if it is not there.

    Args:
        function: what to compile.
        num_specialists: K.
        scalars: an example of the scalars.
        out_dtype: bf16 or float32.
        device: where the arrays will lie.
        signature: text that determines what the function computes (its traced operations).
        paired: make it for arrays and out of words, each of two bf16 entries.

    Raises:
        CannotCompileError: saying why, in one line.
    """
    folder = cache_folder("kernels") / _key(signature, scalars, out_dtype, device, paired)
    if not folder.exists():
        with one_at_a_time(folder.with_suffix(".lock")):
            if not folder.exists():
                _compile_in_child(function, num_specialists, scalars, out_dtype, device, paired, folder)
    return CompiledKernel(folder, device, function.uses_position)


def _key(signature: str, scalars: dict[str, Tensor], out_dtype: torch.dtype, device: torch.device, paired: bool) -> str:
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in scalars.items()}
    what = (_sources(), signature, shapes, str(out_dtype), paired)
    where = (torch.__version__, platform.machine(), _processor(), sys.version_info[:2], *_accelerator(device))
    return hashlib.sha256(repr((what, where)).encode()).hexdigest()


@cache
def _sources() -> str:
    """Digest of the modules that make a compiled kernel of a function; the function itself is in its signature."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()


def _accelerator(device: torch.device) -> tuple[object, ...]:
    """What code for this device is compiled for, besides the processor."""
    if device.type != "cuda":
        return (device.type,)
    return (device.type, torch.version.cuda, torch.cuda.get_device_capability(device))


@cache
def _processor() -> str:
    """Instruction sets of this processor: compiled code is for them alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile_in_child(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    paired: bool,
    folder: Path,
) -> None:
    """Compile into `folder`."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CannotCompileError(f"no C++ compiler ({compiler}) found")
    task = {
        "module": function.function.__module__,
        "name": function.function.__qualname__,
        "options": dict(function.options),
        "uses_position": function.uses_position,
        "companion": None if function.companion is None else _dtype_name(function.companion),
        "num_specialists": num_specialists,
        "scalars": {name: [len(value), _dtype_name(value.dtype)] for name, value in scalars.items()},
        "out_dtype": _dtype_name(out_dtype),
        "device": device.type,
        "paired": paired,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_folder("inductor")),
    }
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "kernel.pt2"
        with (
            (Path(temporary) / "errors").open("w+b") as errors,
            helper_process(
                "mergebench_ray.kernels.compiled",
                str(package),
                json.dumps(task),
                environment=environment,
                stderr=errors,
            ) as process,
        ):
            if process.wait() != 0:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise CannotCompileError(f"compiling failed: {lines[-1] if lines else process.returncode}")
        with whole_folder(folder) as unpacked, zipfile.ZipFile(package) as archive:
            archive.extractall(unpacked)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compile(package: Path, task: dict[str, Any]) -> None:
    """Compile a function of any length >= 2 (words: two registers) into a package file; the child process does this."""
    function = BlockFunction(
        attrgetter(task["name"])(importlib.import_module(task["module"])),
        tuple(sorted(task["options"].items())),
        task["uses_position"],
        task["companion"] and getattr(torch, task["companion"]),
    )
    device = torch.device(task["device"])
    example = torch.zeros(1 << 12, dtype=torch.bfloat16, device=device)
    dtypes = function.array_dtypes(task["num_specialists"])
    arrays = [example.to(WORD if task["paired"] else dtype, copy=True) for dtype in dtypes]
    scalars = {
        name: torch.zeros(length, dtype=getattr(torch, dtype), device=device)
        for name, (length, dtype) in task["scalars"].items()
    }
    position = [torch.zeros(1, dtype=torch.int32, device=device)] if task["uses_position"] else []
    out = example.to(WORD if task["paired"] else getattr(torch, task["out_dtype"]), copy=True)
    arguments = (*arrays, *position, *scalars.values(), out)
    length = torch.export.Dim("length", min=2, max=1 << 40)
    if task["paired"]:
        length = WORDS * length
    free = tuple({0: length} if argument.shape == example.shape else None for argument in arguments)
    exported = _Exported(function, len(arrays), list(scalars), task["paired"])
    program = torch.export.export(exported, arguments, dynamic_shapes=(free,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs={**INDUCTOR_OPTIONS})


if __name__ == "__main__":
    _compile(Path(sys.argv[1]), json.loads(sys.argv[2]))
