"""Compiled kernels: Inductor ahead of time, once per function, kept as folders of files.

`torch.compile` would compile the same code, but pays for its warm-up in every process and guards every call. Here the
function is exported with a free length, compiled in a child process (so that the compiler's memory never stands
beside the weights), and loaded from the cache in milliseconds. The package is kept unpacked: torch would unpack a
packed one into a temporary folder for each process, and leave it behind when the process is killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from signal import SIGKILL

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file, whole_folder
from mergebench_ray.helper_process import helper_process
from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.forms import Form
from mergebench_ray.kernels.threads import torch_threads
from mergebench_ray.outside_code import code_of

logger = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(f"{name}.py") for name in ("compiled", "compiling", "block", "forms", "pairs")]
"""A change of these files is another kernel: they say what is exported, and how it is compiled."""

_OURS = __name__.partition(".")[0]
_KEY = re.compile("[0-9a-f]{64}")
_SMALL = 1 << 15


class CannotCompileError(Exception):
    """There is no compiler, it failed, or what it made is not right."""


class _RefusedError(CannotCompileError):
    """The kernel crashes on this machine, or has other bits than plain torch."""


@cache
def warn_not_compiled(problem: str) -> None:
    """Say once that merging goes on without compiled kernels, and why."""
    logger.warning("%s: merging runs without compiled kernels, with the same results but slower", problem)


class CompiledKernel:
    """A compiled `BlockFunction`, from the folder of its package; called as `EagerKernel` is.

    Args:
        folder: of the package.
        device: where the arrays lie.
        uses_position: whether it is told positions.
        callers: threads that call it at once on a CPU; further ones wait.
    """

    def __init__(self, folder: Path, device: torch.device, uses_position: bool, callers: int = 1) -> None:
        from torch._C._aoti import AOTIModelPackageLoader

        index = -1 if device.type == "cpu" else (device.index or 0)
        # On a GPU, runs follow each other in one stream: the loader's own waiting for each to end is not needed.
        one_stream = device.type != "cpu"
        runners = 1 if one_stream else callers  # more of them, torch refuses there
        self._loader = AOTIModelPackageLoader(str(folder), "model", one_stream, runners, index)
        self._uses_position = uses_position

    def __call__(
        self,
        arrays: Sequence[Tensor],
        start: int,
        scalars: dict[str, Tensor],
        out: Tensor,
        threads: int,
    ) -> None:
        """Run over [n], in the form it was compiled for; other arguments as for `EagerKernel`."""
        position = [torch.full((1,), start, dtype=torch.int32, device=out.device)] if self._uses_position else []
        # Waking threads for a norm's few hundred entries takes longer than computing them.
        with torch_threads(threads if len(out) > _SMALL else 1):
            self._loader.run([*arrays, *position, *scalars.values(), out])


def compile_kernel(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    signature: Callable[[], str],
    form: Form,
    callers: int = 1,
) -> CompiledKernel:
    """Load the compiled form from the cache, compiling it first if it is not there.

    Args:
        function: what to compile.
        num_specialists: K.
        scalars: an example of the scalars.
        out_dtype: bf16 or float32.
        device: where the arrays will lie.
        signature: gives text that determines what the function computes (its traced operations); not asked where the
            same function was compiled before.
        form: which arrays it will run over.
        callers: threads that will call it at once.

    Raises:
        CannotCompileError: saying why, in one line.
    """
    kernels = cache_folder("kernels")
    named = _named(function, num_specialists, scalars, out_dtype, device, form)
    key = _known_key(kernels, named) or _key(signature(), scalars, out_dtype, device, form)
    folder = kernels / key
    refused = folder.with_suffix(".refused")
    if not folder.exists():
        with one_at_a_time(folder.with_suffix(".lock")):
            if refused.exists():
                raise _RefusedError(refused.read_text(encoding="utf-8"))
            try:
                if not folder.exists():
                    _compile_in_child(function, num_specialists, scalars, out_dtype, device, form, folder)
            except _RefusedError as error:
                # It would be refused again, by every process, after as many minutes of compiling.
                refused.write_text(str(error), encoding="utf-8")
                raise
    if named is not None and not (kernels / named).exists():
        # A cache that cannot be written costs time only.
        with suppress(OSError, InputError), whole_file(kernels / named) as temporary:
            temporary.write_text(key, encoding="utf-8")
    return CompiledKernel(folder, device, function.uses_position, callers)


def _known_key(kernels: Path, named: str | None) -> str | None:
    """The key of a kernel that was compiled of a function of this name and sources before, and is still there."""
    if named is None:
        return None
    try:
        key = (kernels / named).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return key if _KEY.fullmatch(key) and (kernels / key).is_dir() else None


def _named(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    form: Form,
) -> str | None:
    """A file name for a function of this package, by all the sources that it may be made of; None for others.

    With it a kernel is found without tracing the function, for which torch imports its whole compiler.
    """
    module = function.function.__module__
    if not module.startswith((f"{_OURS}.kernels.", f"{_OURS}.methods.")):
        return None
    beside = (function.uses_position, str(function.companion), function.shared_companion)
    what = (module, function.function.__qualname__, function.options, *beside)
    return _key(repr((what, num_specialists, _all_sources())), scalars, out_dtype, device, form) + ".named"


@cache
def _all_sources() -> str:
    """Digest of every module that a function of this package may call."""
    package = Path(__file__).parents[1]
    files = sorted(file for part in ("kernels", "methods") for file in (package / part).glob("*.py"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def _key(signature: str, scalars: dict[str, Tensor], out_dtype: torch.dtype, device: torch.device, form: Form) -> str:
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in scalars.items()}
    what = (_sources(), signature, shapes, str(out_dtype), form.value)
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
    form: Form,
    folder: Path,
) -> None:
    """Compile into `folder`."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CannotCompileError(f"no C++ compiler ({compiler}) found")
    code = code_of(function.function)
    task = {
        "code": code and [code.path, code.source],
        "module": function.function.__module__,
        "name": function.function.__qualname__,
        "options": dict(function.options),
        "uses_position": function.uses_position,
        "companion": None if function.companion is None else _dtype_name(function.companion),
        "shared_companion": function.shared_companion,
        "num_specialists": num_specialists,
        "scalars": {name: [value.tolist(), _dtype_name(value.dtype)] for name, value in scalars.items()},
        "out_dtype": _dtype_name(out_dtype),
        "device": device.type,
        "form": form.value,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_folder("inductor")),
    }
    with tempfile.TemporaryDirectory() as temporary:
        made, described = Path(temporary) / "kernel", Path(temporary) / "task.json"
        described.write_text(json.dumps(task), encoding="utf-8")
        with (
            (Path(temporary) / "errors").open("w+b") as errors,
            helper_process(
                "mergebench_ray.kernels.compiling",
                str(made),
                str(described),
                environment=environment,
                stderr=errors,
            ) as process,
        ):
            if process.wait() != 0:
                errors.seek(0)
                raise _failure(process.returncode, errors.read().decode(errors="replace"), made.exists())
        with whole_folder(folder) as kept:
            shutil.copytree(made, kept, dirs_exist_ok=True)


def _failure(status: int, errors: str, made: bool) -> CannotCompileError:
    """Why the child failed: its exit status, what it wrote, whether there was a kernel to be tried."""
    last = (errors.strip().splitlines() or [f"exit status {status}"])[-1]
    if status == -SIGKILL:
        return CannotCompileError("the compiler was killed, perhaps for want of memory")
    if not made:
        return CannotCompileError(f"compiling failed: {last}")
    if status < 0:
        return _RefusedError(f"the compiled kernel crashes here (signal {-status})")
    return _RefusedError(f"the compiled kernel cannot be used: {last}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
