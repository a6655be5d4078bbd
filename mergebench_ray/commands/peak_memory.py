"""Peak memory of a command over all its processes, shared pages counted once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

_INTERVAL = 0.02  # seconds between samples
_IMPORTS = "import torch, ray, time; time.sleep(1)"


def peak_memory(command: Sequence[str]) -> int:
    """Run a command to its end and return the largest memory of its process tree, in bytes.

    Counts each process's proportional share of its pages (PSS), so memory that several processes map is counted once.

    Raises:
        RuntimeError: if the command fails.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    root = psutil.Process(process.pid)
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, sum(_proportional_share(member) for member in [root, *_descendants(root)]))
            time.sleep(_INTERVAL)
    finally:
        # Only where the loop was interrupted is it still there.
        process.terminate()
        process.wait()
    if process.returncode != 0:
        output = process.stdout.read() if process.stdout else ""
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}: {output[-2000:]}")
    return peak


def interpreter_memory() -> int:
    """Memory of a Python process with torch and Ray imported, in bytes."""
    return peak_memory([sys.executable, "-c", _IMPORTS])


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _proportional_share(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0
