"""What a search costs beside merging, loading and scoring: seconds a candidate, and seconds a look.

    python benchmarks/search_overhead.py [--candidates N] [--items N]     of made-up models, whose engines take no time
    python benchmarks/search_overhead.py --run RUN_DIR                    of a run, from the times in its rows

Made up are bank, engines and answers; Tune, Optuna, the race and all that is written to disk are real. What the made-up
scorer takes to make up its answers is taken out. Of several searches the quickest counts, as other work on the machine
only adds to it. A candidate's figure has its looks in it; a look's is what more looks add. The first candidate waits
for Tune's process, once a sitting: that is said apart.

In a run those candidates count that ended in their first go, right before the next one began: from the start of one to
that of the next, without its merge, load and score seconds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import made_up_search
from made_up_search import MadeUpScorer, MadeUpSearch
from mergebench_ray.config import Recipe
from mergebench_ray.runs.trials import read_trials, searched
from mergebench_ray.runtime import ray_session
from mergebench_ray.search.run import search

_RACES: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "pool": {"kind": "pool"},
    "exact": {"kind": "exact", "look": 5},  # goes on through most looks, so that they can be told from candidates
}
_PAUSE = 1.0  # seconds between two candidates of a run that are more than the search's own


class TimedScorer(MadeUpScorer):
    """Knows how long it made up answers, and how often it was asked for a step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.steps = 0.0, 0

    def begin(self, number: int, recipe: Recipe) -> None:
        began = time.perf_counter()
        super().begin(number, recipe)
        self.seconds, self.steps = self.seconds + time.perf_counter() - began, self.steps + 1

    def halt(self, number: int) -> Any:
        began = time.perf_counter()
        found = super().halt(number)
        self.seconds += time.perf_counter() - began
        return found


@dataclass(frozen=True)
class Sitting:
    """What a made-up search took.

    Attributes:
        first: seconds until the first candidate was scored up to its first look.
        rest: seconds of all the others, without what the scorer took.
        candidates: of those.
        steps: what their trials took together: a look or more each.
    """

    first: float
    rest: float
    candidates: int
    steps: int


def made_up(race: Mapping[str, Any], candidates: int) -> Sitting:
    """A search of made-up models through Tune."""
    scorer = TimedScorer()
    options = {"trials": candidates, "sampler": "RandomSampler", "race": dict(race)}
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        one = MadeUpSearch(Path(folder), scorer, options)
        began = time.perf_counter()
        search(
            *(one.sweep, one.space, one.session, one.store, one.records, one.run, one.options, one.budget),
            on_start=lambda _number: starts.append(time.perf_counter()),
            on_finish=lambda _trial: None,
            on_decision=lambda _decision: None,
            note=lambda _line: None,
        )
        ended = time.perf_counter()
    return Sitting(starts[1] - began, ended - starts[1] - scorer.seconds, candidates - 1, scorer.steps)


def of_run(folder: Path) -> list[float]:
    """Seconds beside merge, load and score of the candidates of a run that ended in their first go."""
    rows = sorted(searched(read_trials(folder)), key=lambda row: row.number)
    found = []
    for row, after in pairwise(rows):
        until_next = (after.started - row.finished).total_seconds()
        beside = (row.finished - row.started).total_seconds()
        beside -= row.merge_seconds + row.load_seconds + row.score_seconds
        if 0 < until_next < _PAUSE and beside < _PAUSE:
            found.append(beside + until_next)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--items", type=int, default=255, help="of validation")
    parser.add_argument("--repeats", type=int, default=3, help="of each search, of which the quickest counts")
    given = parser.parse_args()
    if given.run is not None:
        seconds = of_run(given.run)
        median, mean, largest = (f"{one(seconds):.3f} s" for one in (statistics.median, statistics.mean, max))
        print(f"{len(seconds)} candidates, beside merge, load and score: median {median}, mean {mean}, most {largest}")
        return
    logging.disable(logging.WARNING)
    made_up_search.PER_DOMAIN = given.items // len(made_up_search.DOMAINS)
    found: dict[str, list[Sitting]] = {name: [] for name in _RACES}
    with ray_session(None):
        for _ in range(given.repeats):
            for name, race in _RACES.items():
                found[name].append(made_up(race, given.candidates))
    sittings = {name: min(some, key=lambda one: one.rest) for name, some in found.items()}
    for name, one in sittings.items():
        print(
            f"{name}: first candidate after {one.first:.1f} s; then {one.rest / one.candidates:.3f} s a candidate with "
            f"{one.steps / (one.candidates + 1):.1f} steps each"
        )
    none, exact = sittings["none"], sittings["exact"]
    a_look = (exact.rest - none.rest) / (exact.steps - none.steps)
    print(f"a look: {a_look:.4f} s (exact against none)")


if __name__ == "__main__":
    main()
