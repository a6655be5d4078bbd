"""Merges of models larger than memory beside reading and writing the same bytes once, in one control group.

    python benchmarks/made_up_family.py FOLDER
    python benchmarks/merge_larger_than_memory.py FOLDER [--limit 6] [--methods task_arithmetic dare ties]

Before each of them the system gives up what it holds of the files in memory, and digests are not remembered. Needs the
right to make a control group.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measured_process import forget_files, measure, memory_group, peak_of

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
    print("| what | seconds | of the copy | processor, s | peak of a process, MB | peak together, MB |")
    print("| --- " * 6 + "|")
    copied = 0.0
    with compiled_ahead([(method, {}) for method in methods], [one.name for one in specialists]):
        pass
    for method in ("copy", *methods):
        out = folder / "out"
        forget_files(folder)
        with tempfile.TemporaryDirectory() as cache, memory_group(limit << 30) as group:
            kept = os.environ.get("MERGEBENCH_RAY_CACHE") or "~/.cache/mergebench_ray"
            (Path(cache) / "kernels").symlink_to(Path(kept).expanduser() / "kernels")
            if method == "copy":
                command = [sys.executable, "-c", COPY, out, *files]
            else:
                command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--base", base, *given]
                command = ["env", f"MERGEBENCH_RAY_CACHE={cache}", *command, "--out", out]
            taken = measure(command, group)
            together = peak_of(group)
        copied = copied or taken.wall
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        figures = f"{taken.wall:.0f} | {taken.wall / copied:.2f} | {taken.processor:.0f}"
        print(f"| {method} | {figures} | {taken.peak / 1e6:.0f} | {together / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=6, help="GiB of all processes together")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "dare", "ties"])
    options = parser.parse_args()
    main(options.folder, options.limit, options.methods)
