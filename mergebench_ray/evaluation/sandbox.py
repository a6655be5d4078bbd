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
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["passed", "failed", "timed_out"]

_logger = logging.getLogger(__name__)
_CHILD = Path(__file__).with_name("sandbox_child.py")
_REPORT_BYTES = 4096
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
    workers = num_workers or os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(programs)))) as pool:
        return list(pool.map(lambda program: run_program(program, limits=limits), programs))


def run_program(program: str, *, limits: Limits = Limits()) -> SandboxResult:
    """Run one Python program text in its own process, folder and session."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        report_read, report_write = os.pipe()
        challenge_read, challenge_write = os.pipe()
        try:
            os.write(challenge_write, token.encode())
            child = _start(folder, report_write, challenge_read, limits)
            os.close(report_write)
            report_write = -1
            in_time = _feed_and_wait(child, program, limits.wall_seconds)
            os.set_blocking(report_read, False)
            report = _read(report_read)
        finally:
            for descriptor in (report_read, report_write, challenge_read, challenge_write):
                if descriptor >= 0:
                    os.close(descriptor)
    return _judge(report, token, in_time, child.returncode)


def _start(folder: str, report: int, challenge: int, limits: Limits) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-I", "-S", "-X", "utf8", str(_CHILD), str(report), str(challenge)]
    return subprocess.Popen(
        [*arguments, json.dumps(asdict(limits))],
        cwd=folder,
        env={},
        stdin=subprocess.PIPE,
        # Nothing that a program prints counts, so nothing of it is kept.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(report, challenge),
        start_new_session=True,
    )


def _feed_and_wait(child: subprocess.Popen[bytes], program: str, wall_seconds: float) -> bool:
    """Hand over the program and wait; whatever happens, the whole process group is dead afterwards."""
    try:
        child.communicate(program.encode(errors="replace"), timeout=wall_seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _REPORT_BYTES)
    except BlockingIOError:
        return b""


def _judge(report: bytes, token: str, in_time: bool, returncode: int) -> SandboxResult:
    missing, _, rest = report.decode(errors="replace").partition("\n")
    if missing.startswith('["') and not _warned.is_set():
        _warned.set()
        _logger.warning("the sandbox has no kernel isolation of %s on this system", ", ".join(json.loads(missing)))
    if not in_time or returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return SandboxResult("timed_out", "ran longer than its limit")
    if rest == f"passed {token}" and returncode == 0:
        return SandboxResult("passed")
    message = rest.removeprefix("failed ").strip() or f"ended early with status {returncode}"
    return SandboxResult("failed", message.splitlines()[0][:_MESSAGE_CHARACTERS])
