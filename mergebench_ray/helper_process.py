"""A module of this package in a process of its own, which ends with the block and with the process that began it."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from mergebench_ray import interrupts


@contextmanager
def helper_process(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m module arguments``; it and all that it started are gone when the block ends.

    They also end when this process does, were it by SIGKILL: the helper holds a pipe whose other end is here.

    Args:
        module: full name of a module.
        arguments: its command line.
        environment: of the helper; None for this process's.
        stderr: as in `subprocess.Popen`.
    """
    interrupts.clean_up_first()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=None if environment is None else dict(environment),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _end_with_parent() -> None:
    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
