"""`mergebench-ray merge` beside `mergekit-yaml`, as whole processes, on the models of the built-in suite.

    python benchmarks/merge_processes.py --mergekit VENV/bin/mergekit-yaml [--rounds 5]

Base and five specialists of 135 million parameters are written once as plain models; kernels and digests are in the
cache and files in memory, as for whoever merges a second time. Each round runs both programs, one after the other;
medians are printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from measured_process import Measured, measure

from mergebench_ray.checkpoints import resolve, write_model
from mergebench_ray.config import Suite

DENSITY, COEFFICIENT = 0.2, 0.4
METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {"density": DENSITY}),
    "dare": ("dare_linear", {"density": DENSITY}),
}


def plain_models(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The suite's models, each written whole."""
    suite = Suite.load("smollm2-mini")
    references = {"base": str(suite.base), **{name: str(one) for name, one in suite.specialists.items()}}
    for name, reference in references.items():
        if not (folder / name).exists():
            checkpoint = resolve(reference)
            write_model(folder / name, ((one, checkpoint.read(one)) for one in checkpoint.tensors), checkpoint, "")
    return folder / "base", {name: folder / name for name in suite.specialists}


def recipe(method: str, base: Path, specialists: dict[str, Path]) -> dict[str, Any]:
    """A merge as both programs read it."""
    name, parameters = METHODS[method]
    models = [{"model": str(one), "parameters": {"weight": COEFFICIENT, **parameters}} for one in specialists.values()]
    return {
        "merge_method": name,
        "base_model": str(base),
        "models": models,
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
    }


def compare(method: str, models: tuple[Path, dict[str, Path]], mergekit: Path, rounds: int, work: Path) -> None:
    """Print a line of the table."""
    base, specialists = models
    file, out = work / f"{method}.yaml", work / "out"
    file.write_text(yaml.safe_dump(recipe(method, base, specialists)))
    ours: list[str | Path] = [sys.executable, "-m", "mergebench_ray", "merge", file, "--out", out]
    commands: list[list[str | Path]] = [ours, [mergekit, file, out]]
    taken: list[list[Measured]] = [[], []]
    measure(commands[0])  # compiles
    shutil.rmtree(out)
    for _ in range(rounds):
        for command, measured in zip(commands, taken, strict=True):
            measured.append(measure(command))
            shutil.rmtree(out)
    rows = [[median(getattr(one, what) for one in side) for side in taken] for what in ("wall", "processor", "peak")]
    seconds = [f"{mine:.1f} | {its:.1f} | {mine / its:.2f}" for mine, its in rows[:2]]
    peak = f"{rows[2][0] / 1e6:.0f} | {rows[2][1] / 1e6:.0f}"
    print(f"| {method} | {' | '.join(seconds)} | {peak} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--models", type=Path, help="where the models are, or are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = plain_models(options.models or Path(folder) / "models")
        print("| method | wall, s | mergekit | ratio | processor, s | mergekit | ratio | peak, MB | mergekit |")
        print("| --- " * 9 + "|")
        for one in options.methods:
            compare(one, found, options.mergekit, options.rounds, Path(folder))
