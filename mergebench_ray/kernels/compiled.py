"""Compiled kernels: Inductor ahead of time, once per function, kept as folders of files.

`torch.compile` would compile the same code, but pays for its warm-up in every process and guards every call. Here the
function is exported with a free length, compiled in a child process (so that the compiler's memory never stands
beside the weights), and loaded from the cache in milliseconds. The package is kept unpacked: torch would unpack a
packed one into a temporary folder for each process, and leave it behind when the process is killed.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file
from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.compiled_kernel import CompiledKernel
from mergebench_ray.kernels.compilers import RefusedError, compile_into_folder, require_may_compile
from mergebench_ray.kernels.forms import Form

logger = logging.getLogger(__name__)

_SOURCES = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("compiled", "compiled_kernel", "compilers", "compiling", "block", "forms", "pairs")
]
"""A change of these files is another kernel: they say what is exported, and how it is compiled."""

_OURS = __name__.partition(".")[0]
_KEY = re.compile("[0-9a-f]{64}")


@cache
def warn_not_compiled(problem: str) -> None:
    """Say once that merging goes on without compiled kernels, and why."""
    logger.warning("%s: merging runs without compiled kernels, with the same results but slower", problem)


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
        NotCompiledYetError: while nothing is to be compiled.
    """
    kernels = cache_folder("kernels")
    named = _named(function, num_specialists, scalars, out_dtype, device, form)
    key = _known_key(kernels, named)
    if key is None:
        require_may_compile()
        key = _key(signature(), scalars, out_dtype, device, form)
    folder = kernels / key
    refused = folder.with_suffix(".refused")
    if not folder.exists():
        with one_at_a_time(folder.with_suffix(".lock")):
            if refused.exists():
                raise RefusedError(refused.read_text(encoding="utf-8"))
            try:
                if not folder.exists():
                    compile_into_folder(function, num_specialists, scalars, out_dtype, device, form, folder)
            except RefusedError as error:
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
