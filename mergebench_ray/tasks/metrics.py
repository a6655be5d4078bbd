"""A task's metrics and filters: whether they are there, and which way one counts, as lm-eval says or the suite does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import lm_eval.api.metrics  # registers the metrics
import lm_eval.filters
from lm_eval.api.registry import (
    DEFAULT_METRIC_REGISTRY,
    aggregation_registry,
    filter_registry,
    get_aggregation,
    get_metric_aggregation,
    metric_registry,
)
from lm_eval.api.task import ConfigurableTask, Task

from mergebench_ray.errors import InputError, nearest, one_line

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
    "brier_score": "from 0 to 2",
}


class Direction(NamedTuple):
    """Whether what counts of a metric is better when higher, and what is to be noted about that."""

    higher_is_better: bool
    notes: tuple[str, ...]


def check_metrics_and_filters(name: str, config: Mapping[str, Any], counted: str) -> None:
    """Refuse metrics and filters that a task file has wrong, or a suite asks for and it has not.

    Args:
        name: of the task.
        config: the task file, functions unresolved.
        counted: what the suite counts, as METRIC or METRIC,FILTER.

    Raises:
        InputError: naming what is wrong and what there is.
    """
    if "class" in config:
        return
    metric, _, filter_name = counted.partition(",")
    for entry in _listed(name, config, "metric_list", "metric"):
        _check_metric_entry(name, entry)
    if lacks_metric(name, config, metric):
        raise InputError(f"task {name} has no metric {metric!r}; {nearest(metric, _metric_names(name, config))}")
    filters = _listed(name, config, "filter_list", "name")
    for entry in filters:
        _check_filter_entry(name, entry)
    if filter_name and filter_name not in (chosen := [str(entry["name"]) for entry in filters] or ["none"]):
        raise InputError(f"task {name} has no filter {filter_name!r}; {nearest(filter_name, chosen)}")


def lacks_metric(name: str, config: Mapping[str, Any], metric: str) -> bool:
    """Whether a task file, functions unresolved, shows that its task has no such metric.

    A metric that is a function, or loaded, may give several under names of its own, and so may a class.

    Raises:
        InputError: if its metrics are no list of metrics.
    """
    if "class" in config or metric in _metric_names(name, config):
        return False
    listed = _listed(name, config, "metric_list", "metric")
    return all(entry["metric"] in _registered_metrics() or config.get("process_results") for entry in listed)


def _metric_names(name: str, config: Mapping[str, Any]) -> list[str]:
    named = [str(entry["metric"]) for entry in _listed(name, config, "metric_list", "metric")]
    return named or list(DEFAULT_METRIC_REGISTRY.get(config.get("output_type", "generate_until"), ()))


def _listed(name: str, config: Mapping[str, Any], key: str, entry_key: str) -> list[Mapping[str, Any]]:
    entries = config.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or not entries:
        raise InputError(f"task {name}: {key}: give a list, each with its {entry_key}, or leave it out")
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get(entry_key) in (None, ""):
            raise InputError(f"task {name}: {key}: an entry has no {entry_key}: {entry!r:.80}; add it")
    return entries


def _check_metric_entry(name: str, entry: Mapping[str, Any]) -> None:
    metric, aggregation = entry["metric"], entry.get("aggregation")
    if aggregation is None and get_metric_aggregation(str(metric)) is None:
        raise InputError(
            f"task {name}: metric {metric!r} is none of lm-eval's and has no aggregation; add one, or choose another "
            f"({nearest(str(metric), _registered_metrics())})"
        )
    # An unresolved function is told by its dot.
    if isinstance(aggregation, str) and "." not in aggregation and aggregation not in aggregation_registry:
        raise InputError(
            f"task {name}: metric {metric!r}: lm-eval has no aggregation {aggregation!r}; "
            f"{nearest(aggregation, aggregation_registry)}"
        )


def _check_filter_entry(name: str, entry: Mapping[str, Any]) -> None:
    steps = entry.get("filter")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) and "function" in step for step in steps):
        raise InputError(f"task {name}: filter {entry['name']!r}: give a list under 'filter', each with its 'function'")
    for step in steps:
        function = step["function"]
        if isinstance(function, str) and "." not in function and function not in filter_registry:
            raise InputError(
                f"task {name}: filter {entry['name']!r}: lm-eval has no function {function!r}; "
                f"{nearest(function, filter_registry)}"
            )


def _registered_metrics() -> Iterable[str]:
    return list(metric_registry)


def try_metric(task: Task, name: str, metric: str, document: dict[str, Any], requests: int) -> None:
    """Score a made-up answer to the first item, for metrics that lm-eval's own scoring does not know.

    Only where the scoring is lm-eval's own and runs no program; where one metric gives several, they are known then.

    Args:
        task: the task.
        name: its name.
        metric: what counts.
        document: of its first item.
        requests: made for that item.

    Raises:
        InputError: if scoring fails, or gives no such metric.
    """
    if type(task).process_results is not ConfigurableTask.process_results:
        return
    if task.config.process_results is not None or task.config.unsafe_code:
        return
    likelihoods = [(-1.0 - place, False) for place in range(requests)]
    others: dict[Any, list[Any]] = {"generate_until": ["A sentence."], "loglikelihood_rolling": [-1.0]}
    made_up = others.get(task.OUTPUT_TYPE, likelihoods)
    try:
        given = task.process_results(copy.deepcopy(document), made_up)
    except Exception as error:
        problem = f"task {name}: its metrics cannot score an answer ({one_line(error)})"
        raise InputError(f"{problem}; mend its metric_list") from error
    if metric not in given:
        known = given or DEFAULT_METRIC_REGISTRY[task.OUTPUT_TYPE]
        raise InputError(
            f"task {name}: lm-eval's scoring of {task.OUTPUT_TYPE} has no metric {metric!r}; {nearest(metric, known)}"
        )
    if task.aggregation().get(metric) is lm_eval.api.metrics.mean:
        try:
            float(given[metric])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"task {name}: lm-eval's scoring gives metric {metric!r} as {type(given[metric]).__name__}, of which "
                "there is no mean; count another metric, or give it another aggregation"
            ) from error


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
    other = next((found for which, found in _OTHER_RANGES.items() if known[metric] is get_aggregation(which)), None)
    if one_minus:
        wanted = False
        if other is not None:
            raise InputError(
                f"task {name}: one_minus is for metrics from 0 to 1, and {metric} is {other}; leave it out "
                "(higher_is_better says which way a metric counts)"
            )
    said = task.higher_is_better().get(metric)
    if said not in (True, False, None):
        raise InputError(f"task {name}: metric {metric!r}: higher_is_better: {said!r:.80}: give true or false")
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
    if not higher and not one_minus and other is None:
        notes.append(
            f"task {name}: {metric} is better when lower; a candidate of 0, the best there is, cannot be normalised "
            "and is not chosen; if it is a share from 0 to 1, set one_minus: true in the suite"
        )
    return Direction(higher or one_minus, tuple(notes))


def _way(higher: bool) -> str:
    return "higher" if higher else "lower"
