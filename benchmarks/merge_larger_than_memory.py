"""Merges of models larger than memory beside reading and writing the same bytes once, in one control group.

    python benchmarks/made_up_family.py FOLDER
    python benchmarks/merge_larger_than_memory.py FOLDER [--limit 6] [--methods task_arithmetic dare ties]

Copies and merges take turns, since the load of a machine changes. Before each of them the system gives up what it holds
of the files in memory; digests are not remembered. Needs the right to make a control group.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measured_process import Measured, forget_files, measure, memory_group

from mergebench_ray.bank import compiled_ahead

COPY = """
import os, sys
out = open(sys.argv[1], "wb", buffering=0)
buffer = bytearray(8 << 20)
for number, name in enumerate(sys.argv[2:]):
    with open(name, "rb", buffering=0) as stream:
        while got := stream.readinto(buffer):
            if number == 0:
                out.write(memoryview(buffer)[:got])
os.fsync(out.fileno())
"""


def main(folder: Path, limit: int, methods: list[str]) -> None:
    """Print the table."""
    base, *specialists = [folder / "base", *sorted(folder.glob("specialist_*"))]
    files = [next(one.glob("*.safetensors")) for one in (base, *specialists)]
    given = [item for one in specialists for item in ("--specialist", f"{one.name}={one}")]
    read = sum(file.stat().st_size for file in files)
    print(f"{read / 1e9:.1f} GB read, {files[0].stat().st_size / 1e9:.1f} GB written, at most {limit} GiB together\n")
    print("| method | seconds | copies before and after | of their mean | processor, s | peak of a process, MB |")
    print("| --- " * 6 + "|")
    with compiled_ahead([(method, {}) for method in methods], [one.name for one in specialists]):
        pass
    copy: list[str | Path] = [sys.executable, "-c", COPY, folder / "out", *files]
    before = _measured(folder, limit, copy).wall
    for method in methods:
        command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--base", base, *given]
        taken = _measured(folder, limit, [*command, "--out", folder / "out"])
        after = _measured(folder, limit, copy).wall
        ratio = f"{2 * taken.wall / (before + after):.2f}"
        copies, rest = f"{before:.0f}, {after:.0f}", f"{taken.processor:.0f} | {taken.peak / 1e6:.0f}"
        print(f"| {method} | {taken.wall:.0f} | {copies} | {ratio} | {rest} |", flush=True)
        before = after


def _measured(folder: Path, limit: int, command: list[str | Path]) -> Measured:
    """Run a command that writes `out` in the folder, with nothing in memory before, and remove that."""
    out = folder / "out"
    forget_files(folder)
    with tempfile.TemporaryDirectory() as cache, memory_group(limit << 30) as group:
        kept = os.environ.get("MERGEBENCH_RAY_CACHE") or "~/.cache/mergebench_ray"
        (Path(cache) / "kernels").symlink_to(Path(kept).expanduser() / "kernels")
        taken = measure(["env", f"MERGEBENCH_RAY_CACHE={cache}", *command], group)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=6, help="GiB of all processes together")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "dare", "ties"])
    options = parser.parse_args()
    main(options.folder, options.limit, options.methods)
