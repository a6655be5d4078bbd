"""The table of docs/methods.md: every method of a finished run of sweeps/all-methods.yaml.

    python benchmarks/methods_table.py RUN_DIR

Scores and seconds of merges are the run's; memory is measured here, with `mergebench-ray merge` for each method (its
statistics are on disk by then) and one calibration of each kind.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from calibrate_one import measure

from mergebench_ray.commands.peak_memory import interpreter_memory, peak_memory
from mergebench_ray.config import Suite
from mergebench_ray.methods import get_method
from mergebench_ray.runs.leaderboard import best_of_each_method
from mergebench_ray.runs.trials import Trial, read_trials

SAMPLES = 32
KINDS = {"fisher": "fisher", "gram": "regmean", "layerwise": "regmean_plusplus", "mask": "localize_and_stitch"}


def main(run: Path) -> None:
    """Print both tables."""
    trials = read_trials(run)
    rows = [row(trials, best) for best in best_of_each_method(trials)]
    rows.sort(reverse=True)
    print("| method | validation | test | merge, s | peak memory of merge, MB |\n| --- | --- | --- | --- | --- |")
    print("\n".join(text for _, text in rows))
    print()
    print("| statistic | of | seconds | tokens | size, MB | peak memory above model and statistic, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, method in KINDS.items():
        print(calibration_row(kind, method))


def row(trials: list[Trial], best: Trial) -> tuple[float, str]:
    """A method's line, and what it is sorted by."""
    assert best.method is not None
    test = next(t for t in trials if t.split == "test" and t.role == "candidate" and t.number == best.number)
    # 0 is a candidate that was scored before; the first of a method may have waited for its statistics.
    merges = [t.merge_seconds for t in trials if t.method == best.method and t.merge_seconds > 0]
    cells = [
        f"`{best.method}`",
        f"{best.normalised_average:.3f} ± {best.normalised_standard_error:.3f}",
        f"{test.normalised_average:.3f} ± {test.normalised_standard_error:.3f}",
        f"{min(merges):.2f}",
        f"{merge_memory(best.method) / 1e6:.0f}",
    ]
    return test.normalised_average or 0.0, "| " + " | ".join(cells) + " |"


def merge_memory(method: str) -> int:
    """Peak of `mergebench-ray merge`, all its processes, above an interpreter with torch and Ray."""
    suite = Suite.load("smollm2-mini")
    command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--suite", suite.name]
    command += ["--base", str(suite.base)]
    for name, reference in suite.specialists.items():
        command += ["--specialist", f"{name}={reference}"]
    if "calibration_samples" in get_method(method).Parameters.model_fields:
        command += ["--set", f"calibration_samples={SAMPLES}"]
    with tempfile.TemporaryDirectory() as folder:
        return peak_memory([*command, "--out", f"{folder}/merged"]) - interpreter_memory()


def calibration_row(kind: str, method: str) -> str:
    """What one calibration takes, in a process of its own."""
    figures = measure(kind, SAMPLES)
    above = figures["peak_bytes"] - figures["model_bytes"] - figures["statistic_bytes"]
    cells = [
        kind,
        f"`{method}`",
        f"{figures['seconds']:.0f}",
        str(figures["tokens"]),
        f"{figures['statistic_bytes'] / 1e6:.0f}",
        f"{above / 1e6:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
