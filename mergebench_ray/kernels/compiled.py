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
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file, whole_folder
from mergebench_ray.helper_process import helper_process
from mergebench_ray.kernels import block, forms, pairs
from mergebench_ray.kernels.block import ZERO, BlockFunction
from mergebench_ray.kernels.forms import Form
from mergebench_ray.kernels.pairs import WORD, first_entries, rounded_words, second_entries
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

GPU_OPTIONS: dict[str, Any] = {
    **INDUCTOR_OPTIONS,
    # The same of Triton's code: without these it contracts multiply-adds, and divides approximately.
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}

_SOURCES = tuple(Path(str(path)) for path in (__file__, block.__file__, forms.__file__, pairs.__file__))
"""A change of these files is another kernel: they say what is exported, and how it is compiled."""

_OURS = __name__.partition(".")[0]
_KEY = re.compile("[0-9a-f]{64}")
_SMALL = 1 << 15
_TRIED = 1 << 12


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
        callers: threads that call it at once; further ones wait.
    """

    def __init__(self, folder: Path, device: torch.device, uses_position: bool, callers: int = 1) -> None:
        from torch._C._aoti import AOTIModelPackageLoader

        index = -1 if device.type == "cpu" else (device.index or 0)
        # On a GPU, runs follow each other in one stream: the loader's own waiting for each to end is not needed.
        one_stream = device.type != "cpu"
        self._loader = AOTIModelPackageLoader(str(folder), "model", one_stream, callers, index)
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
    what = (module, function.function.__qualname__, function.options, function.uses_position, str(function.companion))
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
    task = {
        "module": function.function.__module__,
        "name": function.function.__qualname__,
        "options": dict(function.options),
        "uses_position": function.uses_position,
        "companion": None if function.companion is None else _dtype_name(function.companion),
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
        made = Path(temporary) / "kernel"
        with (
            (Path(temporary) / "errors").open("w+b") as errors,
            helper_process(
                "mergebench_ray.kernels.compiled",
                str(made),
                json.dumps(task),
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


def export(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    form: Form,
) -> torch.export.ExportedProgram:
    """The function as what Inductor compiles, for arrays of any length that fits the form; arguments as above."""
    paired = form is Form.WORDS
    example = torch.zeros(1 << 12, dtype=torch.bfloat16, device=device)
    dtypes = function.array_dtypes(num_specialists)
    arrays = [example.to(WORD if paired else dtype, copy=True) for dtype in dtypes]
    position = [torch.zeros(1, dtype=torch.int32, device=device)] if function.uses_position else []
    out = example.to(WORD if paired else out_dtype, copy=True)
    arguments = (*arrays, *position, *scalars.values(), out)
    length = torch.export.Dim("length", min=2, max=1 << 40)
    if form.multiple > 1:
        length = form.multiple * length
    free = tuple({0: length} if argument.shape == example.shape else None for argument in arguments)
    exported = _Exported(function, len(arrays), list(scalars), paired)
    return torch.export.export(exported, arguments, dynamic_shapes=(free,))


def options_for(device: torch.device) -> dict[str, Any]:
    """How Inductor is to compile for a device."""
    return dict(INDUCTOR_OPTIONS if device.type == "cpu" else GPU_OPTIONS)


def _compile(folder: Path, task: dict[str, Any]) -> None:
    """Compile a function, unpack its package into a folder, try it out; the child process does this."""
    function = BlockFunction(
        attrgetter(task["name"])(importlib.import_module(task["module"])),
        tuple(sorted(task["options"].items())),
        task["uses_position"],
        task["companion"] and getattr(torch, task["companion"]),
    )
    device = torch.device(task["device"])
    scalars = {
        name: torch.tensor(values, dtype=getattr(torch, dtype), device=device)
        for name, (values, dtype) in task["scalars"].items()
    }
    out_dtype, form = getattr(torch, task["out_dtype"]), Form(task["form"])
    program = export(function, task["num_specialists"], scalars, out_dtype, device, form)
    package = folder.with_suffix(".pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options_for(device))
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    _try_out(function, folder, task["num_specialists"], scalars, out_dtype, form)


def _try_out(
    function: BlockFunction,
    folder: Path,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    form: Form,
) -> None:
    """Run the kernel once, here where a crash harms nothing, and hold its bits against those of plain torch.

    On random numbers, but for the scalars: those that are whole numbers may mean something.

    Raises:
        SystemExit: if they differ.
    """
    device = next(iter(scalars.values())).device
    generator = torch.Generator().manual_seed(0)

    def some(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(device, dtype)
        return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(device, dtype)

    size = _TRIED + 3 if form is Form.ENTRIES else _TRIED  # a loop has a rest
    arrays = [some((size,), dtype) for dtype in function.array_dtypes(num_specialists)]
    values = {
        name: some(value.shape, value.dtype) if value.dtype.is_floating_point and name != ZERO else value
        for name, value in scalars.items()
    }
    lanes = torch.arange(size, dtype=torch.int32, device=device)
    expected = function.values(arrays, lanes, torch.zeros_like(lanes[:1]), values).to(out_dtype)
    out = torch.zeros_like(expected)
    given = form.arrays([*arrays, out])
    assert given is not None
    CompiledKernel(folder, device, function.uses_position)(given[:-1], 0, values, given[-1], 1)
    bits = torch.int16 if out_dtype == torch.bfloat16 else torch.int32
    if differ := int(((out.view(bits) != expected.view(bits)) & ~(out.isnan() & expected.isnan())).sum()):
        sys.exit(f"{differ} of {size} entries differ from what plain torch computes")


if __name__ == "__main__":
    _compile(Path(sys.argv[1]), json.loads(sys.argv[2]))
