"""A finished run with items on disk, from answers that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore


def write_run(
    folder: Path,
    domains: Sequence[str],
    candidates: Any,
    specialist: Sequence[float],
    average: Sequence[float],
    base: Sequence[float],
    split: Any = "validation",
    null_task: str | None = None,
) -> None:
    """Add a split to a run's folder.

    Args:
        folder: the run's; need not exist.
        domains: of each item; a task of the same name.
        candidates: scores, (candidates, items).
        specialist: what each item's specialist scored on it.
        average: what the plain average did.
        base: what the base did.
        split: the split.
        null_task: a task whose items have no scores.
    """
    store = TrialStore(folder)
    names = list(dict.fromkeys(domains))

    def add(role: Any, name: str, scores: Mapping[int, float], number: int = 0) -> None:
        by_domain = {
            domain: [score for place, score in scores.items() if domains[place] == domain]
            for domain in names
            if any(domains[place] == domain for place in scores)
        }
        trial = Trial(
            role=role,
            name=name,
            number=number,
            split=split,
            digest=f"{role}-{name}-{number}",
            items_digest=f"items of {split}" if role != "specialist" else name,
            method="task_arithmetic" if role == "candidate" else None,
            domains={domain: DomainScore(float(np.mean(some)), 0.05, len(some)) for domain, some in by_domain.items()},
        )
        items = [
            {
                "domain": domains[place],
                "task": domains[place],
                "item": f"{split}-{place:04}",
                "cluster": str(place),
                "prompt_digest": str(place),
                "answer": "",
                "score": None if domains[place] == null_task else float(score),
                "judgement": "",
            }
            for place, score in scores.items()
        ]
        store.append(replace(trial, normalised_average=0.5, normalised_standard_error=0.05), items)

    for domain in names:
        add("specialist", domain, {i: one for i, one in enumerate(specialist) if domains[i] == domain})
    add("base", "base", dict(enumerate(base)))
    add("average", "plain average", dict(enumerate(average)))
    for number, scores in enumerate(candidates):
        add("candidate", "task_arithmetic", dict(enumerate(scores)), number)
