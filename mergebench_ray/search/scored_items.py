"""What a model scored, from its items on disk: a run that goes on finds no more of models that it scored before."""

from __future__ import annotations

import math
from collections import defaultdict

import pyarrow as pa

from mergebench_ray.evaluation.estimates import Estimate, estimate_mean, influences_of_mean
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import Influences, exact_sum, in_common
from mergebench_ray.search.objectives.measured import Measured


def measured_from_items(trial: Trial, items: pa.Table) -> Measured:
    """Domain scores as the trial holds them, and what clusters of items moved them by.

    Domains with a metric that is not the mean of its items' scores are without: they count as independent.

    Args:
        trial: the model's row.
        items: its items, as `read_items` reads them.
    """
    estimates: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for (domain, task), (values, clusters) in _by_task(items).items():
        if values:
            estimates[domain][task] = estimate_mean(values, clusters)
    known: dict[str, Influences] = {}
    for domain, result in trial.domains.items():
        tasks = list(estimates[domain].values())
        influences = influences_of_mean(tasks) if tasks else None
        if influences is not None and math.isclose(_mean(tasks), result.score, rel_tol=1e-9, abs_tol=1e-12):
            known[domain] = influences
    return Measured(trial.domains, dict(zip(known, in_common(list(known.values())), strict=True)))


def _by_task(items: pa.Table) -> dict[tuple[str, str], tuple[list[float], list[str]]]:
    """Domain and task -> scores, and the cluster of each; items that the metric leaves out are."""
    found: dict[tuple[str, str], tuple[list[float], list[str]]] = {}
    for row in items.to_pylist():
        values, clusters = found.setdefault((row["domain"], row["task"]), ([], []))
        if row["score"] is not None:
            values.append(row["score"])
            clusters.append(row["cluster"])
    return found


def _mean(estimates: list[Estimate]) -> float:
    return exact_sum(one.value for one in estimates) / len(estimates)
