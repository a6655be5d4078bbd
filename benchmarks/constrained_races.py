"""What a race with constraints costs and loses, on the candidates of a finished run that did not race.

    python benchmarks/constrained_races.py RUN_DIR [--orders N] [--race KIND ...] [--constraint SUBJECT=BOUND ...]

The run's candidates are raced again, over seeded orders of candidates and items, by the very code that races. Said of
each constraint: how many candidates keep it; the share of the items that was asked; how often what is chosen does not
keep it though another does; and how far the objective of what is chosen is below that of the best that keeps it, on
average over the orders where it keeps it, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mergebench_ray.config import SearchOptions
from mergebench_ray.runs.trials import read_trials
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.race.bounds import Bounds
from mergebench_ray.search.race.kinds import KINDS
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.replay.recorded import Recorded
from mergebench_ray.search.replay.replay import drive

CONSTRAINTS = ("safety=>= 0.8", "safety=>= 0.9", "math=>= 0.5", "worst_domain=>= 0.15")


def main() -> None:
    """Print a row for each constraint and kind of race."""
    parser = argparse.ArgumentParser(description="What a race with constraints costs and loses.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--race", nargs="*", default=("pool", "sparing"))
    parser.add_argument("--constraint", nargs="*", default=CONSTRAINTS)
    options = parser.parse_args()
    recorded = Recorded.read(options.run)
    answers = recorded.validation
    trials = [one for one in read_trials(options.run) if one.split == "validation"]
    references = References({one.name: one.domains[one.name] for one in trials if one.role == "specialist"})
    values = answers.values()
    print("| constraint | candidates that keep it | race | items asked | chosen misses it | regret |")
    print("| --- | --- | --- | --- | --- | --- |")
    for text in options.constraint:
        goal = Goal.of(SearchOptions(constraints=dict([text.split("=", 1)])), references)
        bounds = Bounds(answers.items, goal.constraints)
        for place, scores in enumerate(answers.scores):
            bounds.report(place, scores)
        keeps = np.array([bounds.chance(place) == 1 for place in range(len(values))])
        for kind in options.race:
            asked, missed, regrets = [], [], []
            for seed in range(options.orders):
                random = np.random.default_rng([7, seed])
                candidates = random.permutation(len(values))
                order = stratified_order(answers.items, int(random.integers(2**31)))
                make: Any = KINDS[kind]  # those that know of constraints
                race = make(answers.items.taken(order), answers.objective, constraints=goal.constraints)
                drive(race, candidates, answers.scores[:, order])
                finished = race.finished()
                asked.append(sum(map(race.board.answered, range(len(values)))) / answers.scores.size)
                keeping = [one for one in finished if keeps[one]]
                missed.append(bool(keeps.any()) and not keeping)
                if keeping:
                    regrets.append(values[keeps].max() - values[keeping].max())
            cells = [f"{np.mean(asked):.0%}", f"{np.mean(missed):.0%}", f"{np.mean(regrets or [np.nan]):.3f}"]
            print(f"| {goal.constraints[0].name} | {keeps.sum()} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
