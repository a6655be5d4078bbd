"""Compiled kernels live in the cache folder and nowhere else."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
from pathlib import Path

_CHILD = """
import os, signal, torch
from mergebench_ray.kernels import Pass, Segment
from mergebench_ray.methods import get_method, parse_parameters

kernel = get_method("model_soup").kernel(parse_parameters("model_soup", {}))
scalars = get_method("model_soup").scalars(None, None, None, ["a", "b"])
merge = Pass(kernel, 2, scalars, torch.bfloat16, torch.device("cpu"))
base, *vectors = torch.ones(3, 1000, dtype=torch.bfloat16)
out = torch.zeros_like(base)
merge.run(base, vectors, [Segment(0, 1000, 0, scalars)], out, 1)
assert merge.is_compiled and bool((out == 2).all())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_temporary_files_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _CHILD], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    # Should this have compiled the kernel: torch's precompiled headers are in one folder for all processes.
    assert {entry.name for entry in tmp_path.iterdir()} <= {f"torchinductor_{getpass.getuser()}"}
