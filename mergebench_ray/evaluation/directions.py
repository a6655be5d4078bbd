"""Which way a task's metric counts: as lm-eval says, or as the suite does."""

from __future__ import annotations

from typing import NamedTuple

from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import Task

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.task_files import nearest

# lm-eval's aggregations whose values are not from 0 to 1, and the values that they have.
_OTHER_RANGES = {
    "perplexity": "from 1 up",
    "weighted_perplexity": "from 1 up",
    "bits_per_byte": "from 0 up",
    "bleu": "from 0 to 100",
    "chrf": "from 0 to 100",
    "chrf++": "from 0 to 100",
    "ter": "from 0 up, in percent",
    "matthews_corrcoef": "from -1 to 1",
}


class Direction(NamedTuple):
    """Whether what counts of a metric is better when higher, and what is to be noted about that."""

    higher_is_better: bool
    notes: tuple[str, ...]


def find_direction(task: Task, name: str, metric: str, one_minus: bool, wanted: bool | None) -> Direction:
    """Which way what counts of a metric is better.

    Args:
        task: says which way its metrics are better.
        name: its name.
        metric: the metric.
        one_minus: whether 1 - metric is what counts, so that lower is better for the metric.
        wanted: what the suite says; None for what the task says.

    Raises:
        InputError: if the task has no such metric, nobody says which way it is better, or it is not a share that could
            be taken from 1.
    """
    known = task.aggregation()
    if metric not in known:
        raise InputError(f"task {name} has no metric {metric!r}; {nearest(metric, known)}")
    if not callable(known[metric]):
        raise InputError(
            f"task {name}: lm-eval has no aggregation of that name for metric {metric}; mend the task file"
        )
    if one_minus:
        wanted = False
        other = next((found for which, found in _OTHER_RANGES.items() if known[metric] is get_aggregation(which)), None)
        if other is not None:
            raise InputError(
                f"task {name}: one_minus is for metrics from 0 to 1, and {metric} is {other}; leave it out "
                "(higher_is_better says which way a metric counts)"
            )
    said = task.higher_is_better().get(metric)
    if said is None and wanted is None:
        raise InputError(
            f"task {name}: neither task file nor suite says which way metric {metric!r} counts; "
            f"write {{metric: {metric}, higher_is_better: true}} (or false) in the suite"
        )
    higher = bool(said) if wanted is None else wanted
    notes = []
    if said is not None and bool(said) != higher:
        notes.append(
            f"task {name}: the suite counts {metric} as better when {_way(higher)}, lm-eval as better when {_way(said)}"
        )
    return Direction(higher or one_minus, tuple(notes))


def _way(higher: bool) -> str:
    return "higher" if higher else "lower"
