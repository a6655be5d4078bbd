"""How much of their time 1 to 512 engines would compute, by a model of a sweep: table and chart of docs/plan.md.

    python benchmarks/simulated_sweep.py [--chart docs/engines.svg]   of MergeBench's families, by the plan's estimates
    python benchmarks/simulated_sweep.py --run RUN_DIR...             of runs' candidates, by what they took

Each engine scores a candidate of its own, twenty in all. Of a run, whose candidates have to be scored in full, a line
holds the model against it: with as many engines and the steps that were measured, the time from the first candidate's
proposal to the last one's end. Families are planned on a node with eight GPUs, without
methods that see data; their steps are estimates as `plan` makes them, not measurements.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from mergebench_ray.commands.plan import plan_of_headers
from mergebench_ray.placement import Cluster
from mergebench_ray.placement.parts import calibration_kinds
from mergebench_ray.placement.simulated import PROPOSE_SECONDS, Steps, simulate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, read_trials
from mergebench_ray.search.checks import read_sweep

SWEEPS = Path(__file__).parents[1] / "sweeps" / "mergebench"
FAMILIES = ("gemma-2-2b", "llama-3.2-3b", "llama-3.1-8b", "gemma-2-9b")
ENGINES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ROUNDS = 20
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 320, 50, 40


def of_family(name: str) -> list[Steps]:
    """The steps of a candidate by the plan's estimate."""
    sweep = read_sweep(SWEEPS / f"{name}.yaml")
    without = {
        one: given
        for one, given in sweep.methods.items()
        if not set(calibration_kinds(sweep.model_copy(update={"methods": {one: given}})))
    }
    plan = plan_of_headers(sweep.model_copy(update={"methods": without}), Cluster.alike(1, 2 << 40, 8, 80 << 30))
    assert plan.estimate is not None
    swap = plan.estimate.merge_seconds + plan.estimate.load_seconds
    return [Steps(propose=PROPOSE_SECONDS, swap=swap, answer=plan.estimate.answer_seconds)]


def candidates_of(folder: Path) -> list[Trial]:
    """A run's candidates, in the order in which they were proposed."""
    trials = [one for one in read_trials(folder) if one.role == "candidate" and one.split == "validation"]
    return sorted(trials, key=lambda one: one.number)


def of_run(folder: Path) -> list[Steps]:
    """What the candidates of a run took."""
    return [
        Steps(propose=PROPOSE_SECONDS, swap=one.merge_seconds + one.load_seconds, answer=one.score_seconds)
        for one in candidates_of(folder)
    ]


def held_against(folder: Path) -> str:
    """How long the model takes for a run's candidates, beside how long the run took."""
    plan = json.loads(RunFolder(folder).plan_file.read_text(encoding="utf-8"))
    engines = plan["engines"] // plan["engines_per_candidate"]
    trials = candidates_of(folder)
    seconds = (max(one.finished for one in trials) - min(one.started for one in trials)).total_seconds()
    model = simulate(of_run(folder), engines)
    computed = sum(one.score_seconds for one in trials) / (engines * seconds)
    return (
        f"{folder.name}: {len(trials)} candidates on {engines} engines took {seconds:.1f} s, the model "
        f"{model.seconds:.1f} ({model.seconds / seconds:.3f}); they answered {computed:.0%} of the time, the model"
        f"'s {model.efficiency:.0%}"
    )


def efficiencies(steps: Sequence[Steps]) -> list[float]:
    """Of each number of engines."""
    return [
        simulate(list(itertools.islice(itertools.cycle(steps), ROUNDS * count)), count).efficiency for count in ENGINES
    ]


def chart(found: dict[str, list[float]]) -> str:
    """Efficiency over the number of engines, which doubles from step to step, as SVG."""
    step, height = (WIDTH - LEFT - 140) / (len(ENGINES) - 1), HEIGHT - BOTTOM - 20

    def place(index: int, share: float) -> str:
        return f"{LEFT + index * step:.1f},{HEIGHT - BOTTOM - share * height:.1f}"

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">']
    lines.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for share in (0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(0, share).split(",")
        right = place(len(ENGINES) - 1, share).split(",")[0]
        lines.append(f'<line x1="{x}" y1="{y}" x2="{right}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{float(y) + 4}" font-size="11" text-anchor="end">{share:.0%}</text>')
    for index, count in enumerate(ENGINES):
        x = place(index, 0).split(",")[0]
        lines.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" font-size="11" text-anchor="middle">{count}</text>')
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 6}" font-size="11">engines, a candidate each</text>')
    for row, ((name, shares), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        points = " ".join(place(index, share) for index, share in enumerate(shares))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{WIDTH - 130}" y="{40 + 18 * row}" font-size="12" fill="{colour}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Print the table as Markdown, and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    parser.add_argument("--chart", type=Path)
    given = parser.parse_args()
    steps = {run.name: of_run(run) for run in given.run} or {name: of_family(name) for name in FAMILIES}
    found = {name: efficiencies(one) for name, one in steps.items()}
    print(f"| engines | {' | '.join(map(str, ENGINES))} |\n|{' --- |' * (len(ENGINES) + 1)}")
    for name, shares in found.items():
        print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    for name, one in steps.items():
        print(f"{name}: swap {one[0].swap:.2f} s, answers {one[0].answer:.1f} s")
    for run in given.run:
        print(held_against(run))
    if given.chart is not None:
        given.chart.write_text(chart(found), encoding="utf-8")


if __name__ == "__main__":
    main()
