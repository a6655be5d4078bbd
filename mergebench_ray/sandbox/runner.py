"""Run program texts that nobody has read, many at once, and say which of them do what their check asks.

A program runs in a process of its own; its check runs in another one and calls the program's functions as
`untrusted.NAME(...)`, with plain data going to and fro. So a program cannot pass by printing, by exiting early, by its
exit status, by changing the checker or by reading what is expected: it has to return the right values.

A program also cannot run longer than its limits, use more memory or disk, start a process, send a signal, open a
socket, look into another process, raise its limits, change a file outside its folder, read one outside that and the
system's libraries, see this process's environment or descriptors, or leave anything behind. The kernel sees to it, by
Landlock and a list of system calls (Linux on x86-64 or AArch64); where it cannot, nothing runs unless
`allow_weak_sandbox` was called. Root's programs run as a user that owns nothing. Where namespaces are permitted, a
program has besides no network at all and a process table of its own, in which everything it started is killed. What a
system does not offer is logged once, by name.

What remains possible: a program sees whether a path exists and what `stat` says of it, and may fill its time and
memory to the limits. Without a check, a program passes if it says itself that it reached its end, which a program
written for that purpose can fake.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "timed_out"]

_logger = logging.getLogger(__name__)
_CHILD = Path(__file__).with_name("child.py")
_HEADER_BYTES = 512  # as in `child`
_START_SECONDS = 60.0
_PATIENCE_SECONDS = 10.0  # for a launcher's answer, beyond the program's own time
_warned = threading.Event()
_weak_allowed = threading.Event()


class WeakSandboxError(RuntimeError):
    """The system cannot keep programs from this user's files and processes, and nobody has said to run them anyway."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 10.0
    """Wall-clock time of the program and its check, after which all of their processes are killed."""
    cpu_seconds: int = 2
    """Processor time of the program, and again of its check."""
    memory_bytes: int = 256 * 2**20
    """Address space, interpreter included."""
    file_bytes: int = 2**20
    """Size of any one file."""
    folder_bytes: int = 2**24
    """Size of all its files together. Where it lies on disk, a program is ended within milliseconds of having more."""
    processes: int = 32
    """Threads of the program and its check together, and one more for each of the two."""
    open_files: int = 32
    """Open files, pipes included."""


@dataclass(frozen=True)
class Program:
    """A program and what decides whether it is right.

    Attributes:
        text: Python source that nobody has read.
        check: Python source that we trust. It calls the program's functions as `untrusted.NAME(...)` and raises an
            error if a result is wrong. Arguments and results go by value and are plain data: None, booleans, numbers,
            strings, bytes, ranges, lists, tuples, sets, dicts, NumPy's scalars and arrays. A result of any other type
            equals nothing.
    """

    text: str
    check: str = ""


@dataclass(frozen=True)
class SandboxResult:
    """What became of one program.

    Attributes:
        outcome: `passed` only if the program and its check both ran to their ends without an error.
        message: why not, in one short line; empty for `passed`.
    """

    outcome: Outcome
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the program did what its check asks."""
        return self.outcome == "passed"


def check_of(test: str, *functions: str, helpers: str = "") -> str:
    """Text of a check in which functions of the program go by their own names, as most benchmarks have them.

    Args:
        test: Python source that raises an error if a result is wrong.
        functions: names of the program's functions that it calls.
        helpers: Python source to run before, such as a prompt with more functions than the one to complete.
    """
    return "\n".join([helpers, *(f"{name} = untrusted.{name}" for name in functions), test, ""])


class SandboxPool:
    """Runs programs as they come, `num_workers` at a time, while the caller does something else.

    Thread-safe. The workers are threads that sleep while a small process of their own does the work. A program that
    brings its sandbox down takes nothing but its own outcome with it.

    Example:
        >>> with SandboxPool() as pool:
        ...     future = pool.submit(Program("def double(x): return 2 * x", "assert untrusted.double(2) == 4"))
        ...     future.result().outcome
        'passed'

    Args:
        num_workers: programs at a time; default: one per core.
        limits: what each program may use.
        modules: packages that programs and checks may import besides the standard library. Each must be importable
            here, and is imported once per worker.
    """

    def __init__(
        self, *, num_workers: int | None = None, limits: Limits = Limits(), modules: Sequence[str] = ()
    ) -> None:
        self._limits = limits
        self._modules = {name: _folder_of(name) for name in modules}
        self._own = threading.local()
        self._launchers: list[_Launcher] = []
        self._threads = ThreadPoolExecutor(num_workers or os.cpu_count() or 1, thread_name_prefix="sandbox")

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, program: Program | str, *, limits: Limits | None = None) -> Future[SandboxResult]:
        """Run a program when a worker is free; a text alone is a program without a check.

        Args:
            program: what to run.
            limits: in place of the pool's.

        Returns:
            the outcome to come. It raises `RuntimeError` only if no sandbox can be started on this system, and
            `WeakSandboxError` if only a weak one can.
        """
        whole = Program(program) if isinstance(program, str) else program
        return self._threads.submit(self._run, whole, limits or self._limits)

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end all processes."""
        self._threads.shutdown(cancel_futures=True)
        while self._launchers:
            self._launchers.pop().close()

    def _run(self, program: Program, limits: Limits) -> SandboxResult:
        launcher: _Launcher | None = getattr(self._own, "launcher", None)
        if launcher is None:
            launcher = self._own.launcher = _Launcher(self._modules)
            self._launchers.append(launcher)
        return launcher.run(program, limits)


def run_programs(
    programs: Sequence[Program | str],
    *,
    limits: Limits = Limits(),
    num_workers: int | None = None,
    modules: Sequence[str] = (),
) -> list[SandboxResult]:
    """Run all programs and wait; results in the order given. Arguments as of `SandboxPool`."""
    if not programs:
        return []
    workers = min(num_workers or os.cpu_count() or 1, len(programs))
    with SandboxPool(num_workers=workers, limits=limits, modules=modules) as pool:
        return [future.result() for future in [pool.submit(program) for program in programs]]


def run_program(program: Program | str, *, limits: Limits = Limits()) -> SandboxResult:
    """Run one program and wait."""
    return run_programs([program], limits=limits)[0]


def allow_weak_sandbox(allowed: bool) -> None:
    """Say whether this process runs programs even where the system has `weak_points`; at first it does not."""
    (_weak_allowed.set if allowed else _weak_allowed.clear)()


@functools.cache
def weak_points() -> tuple[str, ...]:
    """What programs on this system could not be kept from; empty where the sandbox is whole.

    Raises:
        RuntimeError: if no sandbox can be started on this system.
    """
    launcher = _Launcher({}, probe=True)
    launcher.close()
    return launcher.weak_points


class _Launcher:
    """A small clean process that forks for each program; see `child.py`. Used by one thread."""

    def __init__(self, modules: dict[str, str], *, probe: bool = False) -> None:
        self._modules = modules
        self._probe = probe
        self._start()

    def run(self, program: Program, limits: Limits) -> SandboxResult:
        """Run one program; if its launcher breaks, once more in a new one."""
        # A lone surrogate is no text that a program could hold.
        text, check = program.text.encode(errors="replace"), program.check.encode(errors="replace")
        header = json.dumps({**asdict(limits), "program_bytes": len(text), "check_bytes": len(check)})
        job = header.encode().ljust(_HEADER_BYTES) + text + check
        for _ in range(2):
            answer = self._ask(job, limits.wall_seconds + _PATIENCE_SECONDS)
            if answer is not None:
                return SandboxResult(**answer)
            self.close()
            self._start()
        return SandboxResult("failed", "ended the sandbox around it")

    def close(self) -> None:
        """End the process and all below it, and remove its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", _CHILD, self._folder.name, json.dumps(self._modules)],
            env={"MALLOC_ARENA_MAX": "1"},  # or each thread would reserve much of the memory that it may use
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        hello = self._ask(b"", _START_SECONDS)
        if hello is None:
            self.close()
            raise RuntimeError(f"the sandbox for generated programs does not start ({sys.executable} {_CHILD})")
        self.weak_points: tuple[str, ...] = tuple(hello["weak"])
        if self._probe:
            return
        if self.weak_points and not _weak_allowed.is_set():
            self.close()
            raise WeakSandboxError(
                f"the sandbox for generated programs cannot guard {' and '.join(self.weak_points)} on this system, "
                "so that no program is run; see allow_weak_sandbox"
            )
        if hello["lacking"] and not _warned.is_set():
            _warned.set()
            _logger.warning("the sandbox has no kernel isolation of %s on this system", "; ".join(hello["lacking"]))

    def _ask(self, job: bytes, patience: float) -> dict[str, Any] | None:
        """The launcher's answer; None if it died or hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            data = memoryview(job)
            while data:
                data = data[self._process.stdin.write(data) :]
            ready, _, _ = select.select([self._process.stdout], [], [], patience)
            line = self._process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        return dict(json.loads(line)) if line else None


def _folder_of(module: str) -> str:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {module!r} to give to the sandbox's programs")
    return str(Path(found.submodule_search_locations[0]).parent)
