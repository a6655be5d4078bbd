"""How honest the final choice's reported score is, from a finished run's item scores.

    python benchmarks/final_choice.py RUN_DIR

Each domain's validation items are divided at random, again and again: half for the search, a quarter held back to
choose the winner, a quarter that nothing has seen. Reported minus fresh score of the winner, for the search's best by
its own items and for the final choice; how often its 90 % interval holds the fresh score; and what the winner is below
the best candidate on all items.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mergebench_ray.evaluation.estimates import estimate_mean
from mergebench_ray.runs.items import read_items
from mergebench_ray.runs.trials import Trial, read_trials
from mergebench_ray.scores import DomainScore, Influences
from mergebench_ray.search.final_choice import Compared, choose
from mergebench_ray.search.finals import finalists
from mergebench_ray.search.objectives.errors import standard_error
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References

DIVISIONS = 200
NINETY_PERCENT = 1.645
Items = dict[str, np.ndarray]  # domain -> scores of its items, in one order for all candidates


def main(run: Path) -> None:
    """Print a table."""
    trials = [trial for trial in read_trials(run) if trial.split == "validation"]
    # The specialists' scores stay: their errors are those of all candidates alike.
    exact = {one.name: replace(one.domains[one.name], standard_error=0.0) for one in trials if one.role == "specialist"}
    goal = Goal(NormalisedAverage(References(exact)))
    candidates = [one for one in trials if one.role == "candidate"]
    items = [scores_of(read_items(run, one).to_pylist(), sorted(exact)) for one in candidates]
    whole = [value(goal, measured(some)) for some in items]
    rows = [divided(goal, candidates, items, whole, np.random.default_rng(seed)) for seed in range(DIVISIONS)]
    print("| winner | reported minus fresh | 90 % interval holds it | below the best |\n| --- | --- | --- | --- |")
    for place, name in enumerate(("best of the search, on its items", "final choice, on items held back")):
        off, inside, below = np.array([row[place] for row in rows], dtype=float).T
        error = off.std() / math.sqrt(len(rows))
        print(f"| {name} | {off.mean():.3f} ± {error:.3f} | {inside.mean():.0%} | {below.mean():.4f} |")


def scores_of(rows: list[dict[str, object]], domains: list[str]) -> Items:
    """Item scores of each domain."""
    return {name: np.array([row["score"] for row in rows if row["domain"] == name], dtype=float) for name in domains}


def measured(items: Items) -> Measured:
    """Every item a cluster of its own."""
    domains: dict[str, DomainScore] = {}
    influences: dict[str, Influences] = {}
    for domain, scores in items.items():
        estimate = estimate_mean(scores.tolist(), [f"{domain} {place}" for place in range(len(scores))])
        domains[domain] = DomainScore(estimate.value, estimate.standard_error, len(scores))
        influences[domain] = estimate.influences or {}
    return Measured(domains, influences)


def value(goal: Goal, found: Measured) -> float:
    """The normalised average."""
    return goal.objective.value(found.scores) or 0.0


def divided(
    goal: Goal, candidates: list[Trial], items: list[Items], whole: list[float], random: np.random.Generator
) -> list[tuple[float, bool, float]]:
    """One division: reported minus fresh, whether the interval holds it, and distance to the best, of both winners."""
    order = {domain: random.permutation(len(scores)) for domain, scores in items[0].items()}

    def part(some: Items, begin: float, end: float) -> Measured:
        cut = {name: [int(share * len(places)) for share in (begin, end)] for name, places in order.items()}
        return measured({name: some[name][order[name][slice(*cut[name])]] for name in some})

    searched = [part(some, 0, 0.5) for some in items]
    rows = [
        replace(one, domains=found.domains, objectives=goal.values(found)) for one, found in zip(candidates, searched)
    ]
    chosen_from = [rows.index(one) for one in finalists(rows)]
    held_back = [part(items[place], 0.5, 0.75) for place in chosen_from]
    final_rows = [replace(rows[place], objectives=goal.values(one)) for place, one in zip(chosen_from, held_back)]
    both = [[rows[place] for place in chosen_from], final_rows], [[searched[place] for place in chosen_from], held_back]
    choice = choose([Compared(goal, *one) for one in zip(*both)])
    assert choice is not None
    winners = [
        (chosen_from[0], searched[chosen_from[0]]),
        (chosen_from[choice.chosen], held_back[choice.chosen]),
    ]
    found = []
    for place, reported in winners:
        fresh = part(items[place], 0.75, 1)
        off = value(goal, reported) - value(goal, fresh)
        error = math.hypot(*(standard_error(goal.objective, one).total for one in (reported, fresh)))
        found.append((off, abs(off) <= NINETY_PERCENT * error, max(whole) - whole[place]))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
