"""What this machine has for this process: cores, memory, instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Bytes free on this machine, or left to this process's control group if that is less.

    What the group's files have in memory counts as free, as it does on the machine: it is given up when it is needed.
    """
    available = int(psutil.virtual_memory().available)
    limit = _CONTROL_GROUP / "memory.max"
    if not limit.exists() or (text := limit.read_text().strip()) == "max":
        return available
    statistics = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
    cached = int(statistics.get("active_file", 0)) + int(statistics.get("inactive_file", 0))
    return min(available, int(text) - int((_CONTROL_GROUP / "memory.current").read_text()) + cached)


def computing_device() -> str:
    """What models are computed on here: the name of the GPU, or the CPU's widest instructions that matter for them.

    Which of those there are decides how numbers are rounded on the way, most of all in bf16.
    """
    import torch  # takes seconds, and nothing else here needs it

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = torch.cpu.get_capabilities()
    kinds = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve2", "sve", "bf16", "neon")
    return next((f"{known['architecture']} {one}" for one in kinds if known.get(one)), str(known["architecture"]))


def is_x86() -> bool:
    """Whether it is an x86 CPU."""
    return bool(_cpu_capabilities()["architecture"] == "x86_64")


def emulates_bf16() -> bool:
    """Whether it is an x86 CPU without AVX-512: bf16 then takes several instructions for each of float32."""
    return is_x86() and not _cpu_capabilities()["avx512_f"]


def _cpu_capabilities() -> Mapping[str, Any]:
    import torch  # takes seconds, and nothing else here needs it

    return torch.cpu.get_capabilities()


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each GPU of this machine, those alone that CUDA_VISIBLE_DEVICES leaves where it is set."""
    command = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        lines = [line.split(",") for line in said.splitlines() if line.strip()]
        found = [(name.strip(), int(memory) << 20) for name, memory in lines]
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(memory for _, memory in found)
    # By number, or by the beginning of the name, as cluster schedulers do.
    chosen = [one.strip() for one in visible.split(",") if one.strip()]
    return tuple(
        memory
        for one in chosen
        for number, (name, memory) in enumerate(found)
        if (one == str(number) if one.isdecimal() else name.startswith(one))
    )


def connected_ray() -> Any | None:
    """Ray, where this process is connected and so has imported it, which takes a second; else None."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None
