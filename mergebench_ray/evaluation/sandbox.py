"""Run program texts that nobody has read, several at once, and say which reach their end without an error.

What a program cannot do: run longer than its limits, use more memory, write big files, see this process's environment
or a terminal, leave anything in its folder (which is removed), fill our memory by printing, or pass by printing, by
exiting early or by its exit status. Where the kernel has Landlock and system-call filters (Linux on x86-64 or AArch64)
it also cannot change a file outside its folder, start a process, send a signal or open a socket; where it has not,
that is logged once, and a process that leaves its group may outlive the program. What it still can do: read files that
this user can read, and, if it is written for that very purpose, fake the report from inside its own process: the
verdict guards against wrong answers, not against an attacker of the benchmark.
"""

from __future__ import annotations

import contextlib
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["passed", "failed", "timed_out"]

_logger = logging.getLogger(__name__)
_CHILD = Path(__file__).with_name("sandbox_child.py")
_PATIENCE_SECONDS = 10.0  # for a launcher's answer, beyond the program's own time
_MESSAGE_CHARACTERS = 200
_warned = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 10.0
    """Wall-clock time, after which its process group is killed."""
    cpu_seconds: int = 2
    """Processor time."""
    memory_bytes: int = 256 * 2**20
    """Address space, interpreter included."""
    file_bytes: int = 2**20
    """Size of any one file."""
    processes: int = 32
    """Processes of this user; the kernel ignores it for root, where the system-call filter does the work."""
    open_files: int = 32
    """Open files, pipes included."""


@dataclass(frozen=True)
class SandboxResult:
    """What became of one program.

    Attributes:
        verdict: `passed` only if every line ran without an error.
        message: why not, in one short line; empty for `passed`.
    """

    verdict: Verdict
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.verdict == "passed"


def run_programs(
    programs: Sequence[str], *, limits: Limits = Limits(), num_workers: int | None = None
) -> list[SandboxResult]:
    """Run Python program texts, `num_workers` at a time (default: one per core); results in the order given."""
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(programs)))
    results: list[SandboxResult] = [SandboxResult("failed", "not run")] * len(programs)
    waiting = iter(range(len(programs)))
    turn = threading.Lock()

    def work() -> None:
        with _Launcher() as launcher:
            while True:
                with turn:
                    index = next(waiting, None)
                if index is None:
                    return
                results[index] = launcher.run(programs[index], limits)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    return results


def run_program(program: str, *, limits: Limits = Limits()) -> SandboxResult:
    """Run one Python program text in its own process, folder and session."""
    return run_programs([program], limits=limits)[0]


class _Launcher:
    """A small clean process that forks for each program; see `sandbox_child`."""

    def __enter__(self) -> _Launcher:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, program: str, limits: Limits) -> SandboxResult:
        """Run one program; if it brought its launcher down, the next one gets a new launcher."""
        with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
            # A lone surrogate is no text that a file could hold.
            text = program.encode(errors="replace").decode()
            job = json.dumps({"program": text, "folder": folder, "limits": asdict(limits)}) + "\n"
            answer = self._ask(job, limits.wall_seconds + _PATIENCE_SECONDS)
        if answer is None:
            self._stop()
            self._start()
            return SandboxResult("failed", "ended the sandbox around it")
        return _judge(**answer)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", str(_CHILD)],
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _ask(self, job: str, patience: float) -> dict[str, Any] | None:
        """The launcher's answer; None if it died or hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job.encode())
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], patience)
            line = self._process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        return dict(json.loads(line)) if line else None

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def _judge(report: str, token: str, status: int | None) -> SandboxResult:
    missing, _, rest = report.partition("\n")
    if missing.startswith('["') and not _warned.is_set():
        _warned.set()
        _logger.warning("the sandbox has no kernel isolation of %s on this system", ", ".join(json.loads(missing)))
    if status is None or status in (-signal.SIGXCPU, -signal.SIGKILL):
        return SandboxResult("timed_out", "ran longer than its limit")
    if rest == f"passed {token}" and status == 0:
        return SandboxResult("passed")
    message = rest.removeprefix("failed ").strip() or f"ended early with status {status}"
    return SandboxResult("failed", message.splitlines()[0][:_MESSAGE_CHARACTERS])
