"""What models scored on each item, from a run's folder, and what that says of the items before any candidate came."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.runs.items import read_items
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.race.items import levels

ItemKey = tuple[str, str, str]
"""Domain, task, item."""


def scores_by_item(folder: Path, trial: Trial) -> dict[ItemKey, tuple[float | None, str]]:
    """Score and cluster of each item of a trial, in the order in which they are kept.

    Raises:
        InputError: they are not on disk, or there are none.
    """
    try:
        table = read_items(folder, trial)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: the items of {trial.label} are not there, and a race is made of them; restore the run's "
            "items folder from a copy, or give another run"
        ) from None
    columns = table.to_pydict()
    keys = zip(columns["domain"], columns["task"], columns["item"])
    found = dict(zip(keys, zip(columns["score"], columns["cluster"])))
    if not found:
        raise InputError(f"{folder}: {trial.label} has no items, and a race is made of them; give another run")
    return found


def known_of_items(folder: Path, trials: Sequence[Trial], split: Split, keys: Sequence[ItemKey]) -> list[Hashable]:
    """What was known of each item before the first candidate: how specialist, average and base did on it."""
    found: list[list[int]] = [[] for _ in keys]
    by_task: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        by_task[key[:2]].append(place)
    for role in ("specialist", "average", "base"):
        scores: dict[ItemKey, float | None] = {}
        for trial in trials:
            if trial.role == role and trial.split == split:
                try:
                    scores |= {key: score for key, (score, _) in scores_by_item(folder, trial).items()}
                except InputError:  # a stratum less
                    continue
        for places in by_task.values():
            for place, level in zip(places, levels([scores.get(keys[place]) for place in places])):
                found[place].append(level)
    return [tuple(one) for one in found]
