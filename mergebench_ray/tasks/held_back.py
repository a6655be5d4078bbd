"""Validation in two parts: what the search sees, and what is held back to choose among the best it found.

The winner of a search owes a part of its score to luck on the items it was chosen by; items that the search has not
seen tell how large that part is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.digests import hashed_number
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.scored_task import Item, ScoredTask


def hold_back(tasks: Sequence[ScoredTask], options: EvaluationOptions) -> tuple[list[ScoredTask], list[ScoredTask]]:
    """The tasks with the items of the search, and again with those held back; no cluster of items is in both.

    The first items are the search's. Where items share clusters, in a task or with another, those of the smallest
    hashes are: translations of a question are then on the same side in all languages.

    Args:
        tasks: with all their validation items.
        options: how many of each.

    Raises:
        InputError: if of a task nothing can be held back.
    """
    number = Counter(item.cluster for task in tasks for item in task.items)
    shared = {cluster for cluster, items in number.items() if items > 1}
    divided = [_divided(_in_turn(task.items, shared), options.validation_items, options.final_items) for task in tasks]
    seen = {item.cluster for search, _ in divided for item in search}
    parts = [[item for item in final if item.cluster not in seen] for _, final in divided]
    for task, part in zip(tasks, parts, strict=True):
        if not part:
            raise InputError(
                f"task {task.name}: of its {len(task.items)} validation items none can be held back to choose among "
                "the best; set evaluation.final_items: 0, or give it more items that are independent of the others"
            )
    searched = [_with_items(task, search) for task, (search, _) in zip(tasks, divided, strict=True)]
    return searched, [_with_items(task, part) for task, part in zip(tasks, parts, strict=True)]


def most_items(options: EvaluationOptions) -> int | None:
    """How many validation items of a task can be needed, of the search and held back; None for all."""
    return None if options.validation_items is None else sum(_wanted(options.validation_items, options.final_items))


def _in_turn(items: Sequence[Item], shared: Collection[str]) -> list[Item]:
    """The items, those that the search is to see first."""
    if any(item.cluster in shared for item in items):
        return sorted(items, key=lambda item: hashed_number(item.cluster, 8))
    return list(items)


def _with_items(task: ScoredTask, items: Collection[Item]) -> ScoredTask:
    """The task with some of its items, in its own order."""
    kept = {id(item) for item in items}
    return replace(task, items=tuple(item for item in task.items if id(item) in kept))


def _divided(items: Sequence[Item], searched: int | None, held: int | None) -> tuple[Sequence[Item], Sequence[Item]]:
    """The first items, and those after them: in the proportion that is asked for, where there are too few."""
    count = len(items)
    if searched is None:
        held = max(1, count // 3) if held is None else held
        first = max(1, count - held)
    else:
        first, held = _wanted(searched, held)
        if first + held > count:
            first = max(1, min(count - 1, round(count * first / (first + held))))
    clusters = {item.cluster for item in items[:first]}
    rest = [item for item in items[first:] if item.cluster not in clusters]
    return items[:first], rest[:held]


def _wanted(searched: int, held: int | None) -> tuple[int, int]:
    """Half as many as the search sees, which is a third of both, unless another number is asked for."""
    return searched, (searched + 1) // 2 if held is None else held
