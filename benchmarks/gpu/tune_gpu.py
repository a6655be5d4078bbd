"""A whole search with vLLM on one GPU, and its figures; or the figures alone, of a run that is there.

    python benchmarks/gpu/tune_gpu.py RUN [--trials 16] [--beside RUN_ON_A_CPU]
    python benchmarks/gpu/tune_gpu.py RUN --figures-only [--beside RUN_ON_A_CPU]

Bank and engine share the card where both fit it. The figures hold how long the steps of a candidate took,
how far scores are from those of the same recipes in another run, and whether the best model, merged again on the CPU,
has the same bits. Exit status 1 if the search failed, or they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from safetensors.torch import load_file

from mergebench_ray.commands.merge import merge
from mergebench_ray.commands.tune import tune
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, read_trials

SECONDS = ("merge_seconds", "load_seconds", "score_seconds", "engine_seconds")


def search(folder: Path, sweep: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run the search; how long it took, and its error if it failed."""
    figures: dict[str, Any] = {"error": None}
    began = time.perf_counter()
    try:
        figures["engine_share"] = tune(sweep, out=folder, overrides=overrides, show_progress=True).engine_share
    except Exception as error:
        traceback.print_exc()
        figures["error"] = f"{type(error).__name__}: {error}"[:2000]
    return {**figures, "wall_s": time.perf_counter() - began}


def figures_of(folder: Path, beside: Path | None) -> dict[str, Any]:
    """What a run's folder says, however far the run came."""
    run = RunFolder(folder)
    trials = read_trials(folder) if run.trials_file.exists() else []
    candidates = [trial for trial in trials if trial.role == "candidate" and trial.split == "validation"]
    figures: dict[str, Any] = {"trials": len(trials), "candidates": len(candidates)}
    if candidates:
        figures |= {f"median_{name}": median(getattr(trial, name) for trial in candidates) for name in SECONDS}
    if (best := best_candidate(trials)) is not None:
        figures["best"] = {"name": best.label, "digest": best.digest, "normalised_average": best.normalised_average}
    if beside is not None:
        figures |= compared(trials, read_trials(beside))
    if run.recipe_file.exists() and run.model_folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            again = merge(recipe=run.recipe_file, out=Path(scratch) / "again").folder
            figures["entries"], figures["entries_that_differ"] = differing(run.model_folder, again)
    return figures


def compared(trials: Sequence[Trial], others: Sequence[Trial]) -> dict[str, Any]:
    """How far the scores of what both runs scored are apart."""
    known = {(trial.digest, trial.split): trial.normalised_average for trial in others}
    apart = [
        abs(trial.normalised_average - other)
        for trial in trials
        if (other := known.get((trial.digest, trial.split))) is not None and trial.normalised_average is not None
    ]
    return {"scored_in_both": len(apart), "largest_difference": max(apart, default=None)}


def differing(model: Path, again: Path) -> tuple[int, int]:
    """Entries of a model, and how many of them have other bits in another one."""
    first, second = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (model, again)
    )
    assert first.keys() == second.keys()
    differ = sum(int((first[n].view(torch.int16) != second[n].view(torch.int16)).sum()) for n in first)
    return sum(tensor.numel() for tensor in first.values()), differ


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--sweep", default="sweeps/quickstart.yaml")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another value of the sweep")
    parser.add_argument("--beside", type=Path, metavar="RUN", help="a run of the same sweep on a CPU")
    parser.add_argument("--figures-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("tune_gpu.json"))
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"}
    if not given.figures_only:
        pairs = [one.split("=", 1) for one in given.set]
        overrides = {"search.trials": given.trials, **{key: json.loads(value) for key, value in pairs}}
        figures |= search(given.run, given.sweep, overrides)
    figures |= figures_of(given.run, given.beside)
    given.out.write_text(json.dumps(figures, indent=1, default=str))
    print(json.dumps(figures, indent=1, default=str))
    return 1 if figures.get("error") or figures.get("entries_that_differ") else 0


if __name__ == "__main__":
    sys.exit(main())
