"""The front of several objectives: which models no other is better than in everything, and in which order to take them.

Arrays here hold a row for each model and a column for each objective, turned so that more is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mergebench_ray.config.objective import ChoiceSpec, choice_values

Floats = npt.NDArray[np.float64]


def non_dominated(values: Floats) -> npt.NDArray[np.bool_]:
    """Which models are on the front: for no other is everything at least as good, and something better.

    Args:
        values: (models, objectives).

    Returns:
        (models,).
    """
    on_front = np.ones(len(values), dtype=np.bool_)
    for place, one in enumerate(values):  # all pairs at once would need the square of the models' number in memory
        on_front[place] = not ((values >= one).all(axis=1) & (values > one).any(axis=1)).any()
    return on_front


def chosen_first(choice: ChoiceSpec, names: Sequence[str], values: Floats, errors: Floats) -> list[int]:
    """In which order a choice takes models: of equals, as the two of a front of two are for the knee, the largest sum.

    Args:
        choice: knee, weights or floors.
        names: of the objectives.
        values: (models, objectives).
        errors: of the values, the same shape.

    Returns:
        places of the models.
    """
    if isinstance(choice, str):
        loss = distances_to_ideal(values, errors)
    elif "weights" in choice:
        loss = -values @ np.array([choice_values(choice).get(name, 0.0) for name in names])
    else:
        floored = [name in choice_values(choice) for name in names]
        rest = values if all(floored) else values[:, ~np.array(floored)]
        loss = -rest.sum(axis=1)
    short = shortfalls(choice, names, values)
    found: list[int] = np.lexsort((-values.sum(axis=1), loss.round(9), short)).tolist()
    return found


def distances_to_ideal(values: Floats, errors: Floats) -> Floats:
    """How far models are from having the best of every objective: 0 for one that has it. The knee is the nearest.

    Each objective counts in units of its range, but of no less than two standard errors: a range that chance alone
    explains would weigh as much as a real one.
    """
    ranges = np.maximum(values.max(axis=0) - values.min(axis=0), 2 * errors.mean(axis=0))
    apart = (values.max(axis=0) - values) / np.where(ranges > 0, ranges, 1.0)
    found: Floats = np.sqrt((apart**2).sum(axis=1))
    return found


def shortfalls(choice: ChoiceSpec, names: Sequence[str], values: Floats) -> Floats:
    """How far models are below a choice's floors, all together; 0 for those that keep them, and without floors."""
    floors = {} if isinstance(choice, str) or "floors" not in choice else choice_values(choice)
    below = [np.maximum(0.0, floors[name] - values[:, place]) for place, name in enumerate(names) if name in floors]
    return np.sum(below, axis=0) if below else np.zeros(len(values))
