"""Compilers of kernels: a child process for each, this very process, or none at all.

A child needs 10 s of processor before its first kernel, of which each takes 5 s: who compiles many does it in a process
that is there for nothing else (`compiling_here`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from signal import SIGKILL
from typing import Any, TypeVar

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder
from mergebench_ray.files import whole_folder
from mergebench_ray.helper_process import helper_process
from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.forms import Form
from mergebench_ray.outside_code import code_of

_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
T = TypeVar("T")


class CannotCompileError(Exception):
    """There is no compiler, it failed, or what it made is not right."""


class NotCompiledYetError(Exception):
    """A kernel would have to be compiled, or at least traced, while `compiling_nothing`."""


class RefusedError(CannotCompileError):
    """The kernel crashes on this machine, or has other bits than plain torch."""


def compile_into_folder(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    form: Form,
    folder: Path,
) -> None:
    """Compile a function into the folder of its package, by the compiler of this context.

    Args:
        function: what to compile; the next five as for `compile_kernel`.
        num_specialists: K.
        scalars: an example of the scalars.
        out_dtype: bf16 or float32.
        device: where the arrays will lie.
        form: which arrays it will run over.
        folder: not there yet; made whole or not at all.

    Raises:
        CannotCompileError: saying why, in one line.
    """
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
    _compiler.get()(task, folder)


def _compile_in_child(task: dict[str, Any], folder: Path) -> None:
    """Compile into `folder`, in a process of its own."""
    _require_compiler()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        _INDUCTOR_CACHE: str(cache_folder("inductor")),
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
        _keep(made, folder)


def _compile_here(task: dict[str, Any], folder: Path) -> None:
    """Compile into `folder`, in this process, which a kernel that crashes ends."""
    from mergebench_ray.kernels.compiling import compile_into

    _require_compiler()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "kernel"
        try:
            compile_into(made, task)
        except (Exception, SystemExit) as error:
            raise _failure(
                1, str(error) if made.exists() else f"{type(error).__name__}: {error}", made.exists()
            ) from error
        _keep(made, folder)


_compiler: ContextVar[Callable[[dict[str, Any], Path], None]] = ContextVar("compiler", default=_compile_in_child)
_compiles: ContextVar[bool] = ContextVar("compiles", default=True)


@contextmanager
def compiling_here() -> Iterator[None]:
    """What is missing is compiled by this very process, which should be there for that alone.

    Should a kernel crash, so does the process, and what tries the same kernel next, in a child, finds out why.
    """
    os.environ[_INDUCTOR_CACHE] = str(cache_folder("inductor"))
    with _set_to(_compiler, _compile_here):
        yield


@contextmanager
def compiling_nothing() -> Iterator[None]:
    """Who asks for a kernel that is not known by its name gets a `NotCompiledYetError`, before anything is traced."""
    with _set_to(_compiles, False):
        yield


def require_may_compile() -> None:
    """Raise `NotCompiledYetError` while `compiling_nothing`."""
    if not _compiles.get():
        raise NotCompiledYetError


@contextmanager
def _set_to(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _require_compiler() -> None:
    if (problem := compiler_problem()) is not None:
        raise CannotCompileError(problem)


def compiler_problem() -> str | None:
    """Why nothing can be compiled on this machine, or None."""
    compiler = os.environ.get("CXX", "g++")
    return f"no C++ compiler ({compiler}) found" if shutil.which(compiler) is None else None


def _keep(made: Path, folder: Path) -> None:
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
        return RefusedError(f"the compiled kernel crashes here (signal {-status})")
    return RefusedError(f"the compiled kernel cannot be used: {last}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
