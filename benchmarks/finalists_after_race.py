"""What it brings to compare candidates that a race stopped with its winner, on fresh items.

    python benchmarks/finalists_after_race.py RUN_DIR... [--orders N] [--race KIND]

The candidates of runs that did not race are raced over half of the validation items, in seeded orders. On a quarter,
which the race has not seen, the best five (those that were scored in full, then the stopped ones with the best
estimates) are compared as a final choice would; what was chosen is measured on the last quarter. Printed is the mean
gain over the race's winner there, with its standard error over the orders, and how often another was chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mergebench_ray.search.race.contrasts import Contrasts, Floats
from mergebench_ray.search.race.kinds import KINDS
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.race.race import Race
from mergebench_ray.search.replay.recorded import Recorded
from mergebench_ray.search.replay.replay import drive

FINALISTS = 5


def _added_up(race: Race, candidates: list[int], first: int, above: Floats, errors: Floats) -> Floats:
    """How far candidates are above one of them, by the race's estimates and fresh items, each as far as it is known."""
    estimates = [race.estimate(one) for one in candidates]
    guessed = np.array([one.value - estimates[first].value for one in estimates])
    guess_errors = np.array([np.hypot(one.standard_error, estimates[first].standard_error) for one in estimates])
    weights, fresh_weights = (1 / np.maximum(one, 1e-3) ** 2 for one in (guess_errors, errors))
    added: Floats = (weights * guessed + fresh_weights * above) / (weights + fresh_weights)
    return added


def main() -> None:
    """Print a row for each rule."""
    parser = argparse.ArgumentParser(description="What comparing stopped candidates on fresh items brings.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--race", default="pool")
    options = parser.parse_args()
    gains: dict[str, list[float]] = {}
    others: dict[str, list[bool]] = {}
    asked = []
    for run in options.runs:
        answers = Recorded.read(run).validation
        for seed in range(options.orders):
            random = np.random.default_rng([11, seed])
            places = stratified_order(answers.items, int(random.integers(2**31)))
            cuts = np.array([0.5, 0.75]) * len(places)
            seen, final, last = (answers.taken(one) for one in np.split(places, cuts.astype(int)))
            race = KINDS[options.race](seen.items, seen.objective)
            drive(race, random.permutation(len(seen.scores)), seen.scores)
            full = race.finished()
            winner = max(full, key=race.board.value)
            stopped = sorted(race.in_state("stopped"), key=lambda one: -race.estimate(one).value)
            five = [*sorted(full, key=lambda one: -race.board.value(one)), *stopped][:FINALISTS]
            asked.append(len(five) - len(full))
            contrasts = Contrasts(final.items, final.objective)
            fresh, first = contrasts.values(final.scores[five]), five.index(winner)
            own = np.stack([contrasts.contributions(final.scores[one]) for one in five])
            errors = np.sqrt(contrasts.variances(own - own[first]) / len(final.items))
            above = fresh - fresh[first]
            sure = np.where(above > 2 * errors, above, 0.0)
            rules = {
                "the best on fresh items": int(fresh.argmax()),
                "another that is two paired errors above": int(sure.argmax()) if sure.any() else first,
                "both added up by their errors": int(_added_up(race, five, first, above, errors).argmax()),
            }
            rest = last.values()
            for rule, chosen in rules.items():
                gains.setdefault(rule, []).append(float(rest[five[chosen]] - rest[winner]))
                others.setdefault(rule, []).append(five[chosen] != winner)
    print(f"{np.mean(asked):.1f} stopped candidates among the five\n")
    print("| rule | gain over the race's winner | another chosen |")
    print("| --- | --- | --- |")
    for rule, found in gains.items():
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        print(f"| {rule} | {np.mean(found):+.4f} ± {error:.4f} | {np.mean(others[rule]):.0%} |")


if __name__ == "__main__":
    main()
