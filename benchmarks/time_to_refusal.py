"""Seconds from a command to the line that refuses it: medians over plain mistakes, each in a process of its own.

python benchmarks/time_to_refusal.py [--times 10]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = """
name: example
suite: smollm2-mini
methods:
  ties: {density: {low: 0.1, high: 0.5}}
"""
FILES = {
    "empty.yaml": "",
    "good.yaml": SWEEP,
    "key.yaml": SWEEP + "serch: {trials: 3}\n",
    "method.yaml": SWEEP.replace("ties", "tise"),
    "parameter.yaml": SWEEP.replace("0.5", "1.5"),
    "reference.yaml": SWEEP + "base: ./no-such-folder\n",
    "suite.yaml": SWEEP.replace("smollm2-mini", "no-such-suite"),
    "sampler.yaml": SWEEP + "search: {sampler: NoSampler}\n",
    "option.yaml": SWEEP + "search: {sampler_options: {n_startup_trials: many}}\n",
    "storage.yaml": SWEEP + "search: {storage: 'nowhere://'}\n",
    "text": "not a folder",
}
MERGE = ["merge", "--method", "ties", "--base", "./text", "--specialist", "math=./nowhere"]
MISTAKES = {
    "empty sweep": ["tune", "empty.yaml"],
    "missing file": ["tune", "missing.yaml"],
    "unknown key": ["tune", "key.yaml"],
    "unknown method": ["tune", "method.yaml"],
    "wrong hyper-parameter": ["tune", "parameter.yaml"],
    "wrong --set": ["tune", "good.yaml", "--set", "search.trials=many"],
    "--set without a value": ["tune", "good.yaml", "--set", "search.trials"],
    "missing folder of a model": ["tune", "reference.yaml"],
    "unknown suite": ["tune", "suite.yaml"],
    "wrong --out": ["tune", "good.yaml", "--out", "text"],
    "unknown sampler": ["tune", "sampler.yaml"],
    "wrong sampler option": ["tune", "option.yaml"],
    "unknown storage": ["tune", "storage.yaml"],
    "plan of an empty sweep": ["plan", "empty.yaml"],
    "merge of a missing folder": [*MERGE, "--out", "out"],
    "merge with a wrong hyper-parameter": [*MERGE, "--set", "density=2", "--out", "out"],
    "merge into a file": [*MERGE, "--out", "text"],
    "merge of an empty recipe": ["merge", "--recipe", "empty.yaml", "--out", "out"],
    "evaluate with an unknown suite": ["evaluate", "./text", "--suite", "no-such-suite"],
    "evaluate of a missing folder": ["evaluate", "./nowhere", "--suite", "smollm2-mini"],
    "data check of a missing file": ["data", "check", "missing.yaml"],
    "report of a folder that is no run": ["report", "nowhere"],
    "unknown option": ["tune", "good.yaml", "--nope"],
    "unknown command": ["tuen", "good.yaml"],
}


def main() -> None:
    """Run every mistake a few times and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    print(f"{'mistake':36} {'seconds':>8} {'processor':>10}   median of {times}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            (Path(folder) / name).write_text(content)
        before = sorted(Path(folder).iterdir())
        for mistake, arguments in MISTAKES.items():
            runs = [refuse(arguments, folder) for _ in range(times)]
            seconds, processor = (statistics.median(values) for values in zip(*runs, strict=True))
            worst = max(worst, seconds)
            print(f"{mistake:36} {seconds:8.2f} {processor:10.2f}", flush=True)
        assert sorted(Path(folder).iterdir()) == before, "something was left behind"
    print(f"slowest median: {worst:.2f} s")


def refuse(arguments: list[str], folder: str) -> tuple[float, float]:
    """Wall and processor seconds of a command that must be refused in one line."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mergebench_ray", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2, (arguments, done)
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return seconds, now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime


if __name__ == "__main__":
    main()
