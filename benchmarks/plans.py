"""What of MergeBench's eight families fits which machines: the tables of docs/plan.md; needs no network.

python benchmarks/plans.py [--without-data]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mergebench_ray.commands.sweep_models import resolve_headers_of
from mergebench_ray.placement import Cluster, Plan, make_plan
from mergebench_ray.placement.parts import calibration_kinds
from mergebench_ray.search.checks import read_sweep

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps" / "mergebench").glob("*.yaml"))
GIB = 1 << 30
MACHINES = {
    "1 x 80 GB": Cluster.alike(1, 256 * GIB, 1, 80 * GIB),
    "1 x 8": Cluster.alike(1, 2048 * GIB, 8, 80 * GIB),
    "2 x 8": Cluster.alike(2, 2048 * GIB, 8, 80 * GIB),
    "8 x 8": Cluster.alike(8, 2048 * GIB, 8, 80 * GIB),
    "4 CPU nodes of 64 GB": Cluster.alike(4, 64 * GIB),
    "1 of 256 GB": Cluster.alike(1, 256 * GIB),
    "4 of 256 GB": Cluster.alike(4, 256 * GIB),
}


def plans(path: Path, *, without_data: bool) -> dict[str, Plan]:
    """The plan of a sweep on each machine.

    Args:
        path: the sweep's file.
        without_data: leave out its methods that see calibration data.
    """
    sweep = read_sweep(path)
    if without_data:
        kept = {
            name: parameters
            for name, parameters in sweep.methods.items()
            if not set(calibration_kinds(sweep.model_copy(update={"methods": {name: parameters}})))
        }
        sweep = sweep.model_copy(update={"methods": kept})
    models = resolve_headers_of(sweep, sweep.load_suite())
    return {
        name: make_plan(sweep, models.base, models.specialists, cluster, judges=models.judges)
        for name, cluster in MACHINES.items()
    }


def cell(plan: Plan) -> str:
    """A plan in a few words."""
    if plan.placement is None:
        change = str(plan.problem).rpartition(": use ")[2]
        return f"no: {re.sub(r' [(][^)]*[)]', '', change)}"
    return "bank on GPUs" if plan.placement.bank_on_gpu else "fits" if not plan.cluster.gpus else "bank in host memory"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-data", action="store_true", help="leave out methods that see calibration data")
    without_data = parser.parse_args().without_data
    print(f"| family | {' | '.join(MACHINES)} |\n|{' --- |' * (len(MACHINES) + 1)}")
    for path in SWEEPS:
        found = plans(path, without_data=without_data)
        print(f"| {path.stem} | {' | '.join(map(cell, found.values()))} |")


if __name__ == "__main__":
    main()
