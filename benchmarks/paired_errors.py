"""How errors of differences between candidates compare with a paired bootstrap, from a finished run's item scores.

    python benchmarks/paired_errors.py RUN_DIR

For each objective: stated errors / those of the bootstrap, over all pairs of models that were scored in the search.
Items are drawn anew, the same for both models; the specialists' scores stay. Beside it two models' own errors, as if
independent.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np

from mergebench_ray.config.objective import ObjectiveSpec
from mergebench_ray.evaluation.estimates import estimate_mean, influences_of_mean
from mergebench_ray.runs.items import read_items
from mergebench_ray.runs.trials import read_trials
from mergebench_ray.search.objectives.errors import difference, standard_error
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import make_objective

DRAWS = 1000
Items = dict[str, tuple[list[float], list[str]]]


def main(run: Path) -> None:
    """Print a line for each objective."""
    trials = [trial for trial in read_trials(run) if trial.split == "validation"]
    references = References({one.name: one.domains[one.name] for one in trials if one.role == "specialist"})
    models = {one.digest: one for one in trials if one.role != "specialist"}
    items = [by_domain(read_items(run, one).to_pylist()) for one in models.values()]
    draws = drawn(items[0], np.random.default_rng(0))
    specs: list[ObjectiveSpec] = ["normalised_average", "worst_domain", *references.specialists]
    print(
        "| objective | pairs | stated / bootstrap: median, 5 %, 95 % | the same, unpaired |\n| --- | --- | --- | --- |"
    )
    for spec in specs:
        print(line(make_objective(spec, references), items, draws))


def by_domain(rows: list[dict[str, object]]) -> Items:
    """Scores and clusters of each domain's items."""
    found: Items = {}
    for row in rows:
        scores, clusters = found.setdefault(str(row["domain"]), ([], []))
        scores.append(float(row["score"]))  # type: ignore[arg-type]
        clusters.append(str(row.get("cluster") or row["item"]))
    return found


def drawn(items: Items, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights of each domain's items, (draws, items): as many clusters as there are, with repeats."""
    weights = {}
    for domain, (_, clusters) in items.items():
        names, places = np.unique(clusters, return_inverse=True)
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)[:, places]
        weights[domain] = counts / counts.sum(axis=1, keepdims=True)
    return weights


def measured(objective: Objective, items: Items) -> Measured:
    """A model's scores with how far clusters moved them."""
    estimates = {domain: estimate_mean(*some) for domain, some in items.items()}
    scores = {
        domain: type(objective.references[domain])(one.value, one.standard_error, len(items[domain][0]))
        for domain, one in estimates.items()
        if domain in objective.references
    }
    return Measured(scores, {domain: influences_of_mean([estimates[domain]]) or {} for domain in scores})


def line(objective: Objective, items: list[Items], draws: dict[str, np.ndarray]) -> str:
    """The table's row for an objective."""
    models = [measured(objective, some) for some in items]
    values = []
    for some in items:
        means = {domain: draws[domain] @ np.array(scores) for domain, (scores, _) in some.items()}
        values.append([objective.value({name: one[draw] for name, one in means.items()}) for draw in range(DRAWS)])
    paired, alone = [], []
    for one, other in itertools.combinations(range(len(models)), 2):
        spread = float(np.std(np.subtract(values[one], values[other])))
        if spread > 0:
            paired.append(difference(objective, models[one], models[other]).error.own / spread)
            alone.append(math.hypot(*(standard_error(objective, models[at]).own for at in (one, other))) / spread)
    low, high = np.quantile(paired, (0.05, 0.95))
    found = f"{np.median(paired):.3f}, {low:.3f}, {high:.3f}"
    return f"| {objective.name} | {len(paired)} | {found} | {np.median(alone):.3f} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
