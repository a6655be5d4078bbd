"""A whole process measured: wall time, processor time and peak memory, in a control group of its own if wanted."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Measured:
    """What a process and those that it waited for took.

    Attributes:
        wall: seconds from its start to its end.
        processor: seconds of all cores.
        peak: largest resident memory of one process, bytes.
    """

    wall: float
    processor: float
    peak: int


def measure(command: Sequence[str | Path], group: Path | None = None) -> Measured:
    """Run a command to its end.

    Args:
        command: what to run.
        group: control group that it runs in.

    Raises:
        RuntimeError: it fails.
    """

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    with tempfile.TemporaryFile("w+b") as output:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, preexec_fn=join)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{command[0]} failed: {output.read().decode(errors='replace')[-2000:]}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group whose processes may take so many bytes together, what they have in the file cache included."""
    new = (_GROUPS / "cgroup.controllers").exists()
    group = (_GROUPS if new else _GROUPS / "memory") / f"mergebench_ray_{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if new else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def forget_files(folder: Path) -> None:
    """Have the system give up what it holds of files in memory, so that they are read from the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
