"""What a race for the front of several objectives costs and loses, on the candidates of a finished run.

    python benchmarks/front_races.py RUN_DIR [--orders N] [--race KIND[,p=P] ...] [--objectives A,B[,C...] ...]

The run's candidates are raced again, over seeded orders of candidates and items, by the very code that races. Said of
each setting: the share of the items that were asked; how many members of the front of full scoring were stopped; how
much less volume the front that is left exceeds, as a share, on average and at most in 95 % of the orders.
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from fronts import exceeded

from mergebench_ray.runs.front import non_dominated
from mergebench_ray.runs.trials import read_trials
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import make_objective
from mergebench_ray.search.race.contrasts import Contrasts
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.kinds import OF_SEVERAL
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.replay.recorded import Recorded

OBJECTIVES = (
    "math,safety",
    "coding,math",
    "math,instruction,multilingual",
    "coding,instruction,math,multilingual,safety",
)
RACES = ("pool", "pool,p=0.05", "pool,p=0.25", "sparing")
POINTS = 100_000  # at which it is seen whether a front exceeds them


def race_again(recorded: Recorded, kind: str, objectives: list[Objective], seed: int) -> tuple[float, list[int]]:
    """Share of the items asked, and the candidates that were scored in full."""
    answers = recorded.validation
    random = np.random.default_rng([7, seed])
    candidates = random.permutation(len(answers.scores)).tolist()
    order = stratified_order(answers.items, int(random.integers(2**31)))
    name, *settings = kind.split(",")
    options: dict[str, Any] = {key: float(value) for key, _, value in (one.partition("=") for one in settings)}
    race = OF_SEVERAL[name](answers.items.taken(order), answers.objective, several=objectives, **options)
    scores = answers.scores[:, order]
    raised: deque[tuple[int, int]] = deque()

    def take(decisions: list[Decision]) -> None:
        raised.extend((one.candidate, one.until) for one in decisions if one.action == "go on")
        while raised:
            candidate, until = raised.popleft()
            take(race.report(candidate, scores[candidate, :until]))

    for candidate in candidates:
        take(race.report(candidate, scores[candidate, : race.first_look]))
    take(race.close())
    asked = sum(race.board.answered(candidate) for candidate in candidates)
    return asked / scores.size, race.finished()


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(description="What a race for a front costs and loses.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--orders", type=int, default=30)
    parser.add_argument("--race", nargs="*", default=RACES)
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES)
    options = parser.parse_args()
    recorded = Recorded.read(options.run)
    trials = [one for one in read_trials(options.run) if one.split == "validation"]
    references = References({one.name: one.domains[one.name] for one in trials if one.role == "specialist"})
    print("| objectives | front | race | items asked | members stopped | volume lost | in 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for names in options.objectives:
        objectives = [make_objective(name, references) for name in names.split(",")]
        contrasts = [Contrasts(recorded.validation.items, one) for one in objectives]
        values = np.stack([one.values(recorded.validation.scores) for one in contrasts], axis=1)
        members = set(np.flatnonzero(non_dominated(values)).tolist())
        probes = np.random.default_rng(0).random((POINTS, len(objectives))) * values.max(axis=0)
        whole = exceeded(probes, values)
        for kind in options.race:
            raced = [race_again(recorded, kind, objectives, seed) for seed in range(options.orders)]
            lost = [1 - exceeded(probes, values[finished]) / whole for _, finished in raced]
            cells = [
                f"{np.mean([asked for asked, _ in raced]):.0%}",
                f"{np.mean([len(members - set(finished)) for _, finished in raced]):.2f}",
                *(f"{np.mean(lost):.1%}", f"{np.quantile(lost, 0.95):.1%}"),
            ]
            print(f"| {names} | {len(members)} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
