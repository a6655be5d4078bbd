"""Who is best: reference models and the best candidates, ordered by what the search is after."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mergebench_ray.config.fields import Split
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.config.objective import FORGETTING
from mergebench_ray.runs.trials import COMPARED_WITH, Trial, is_known
from mergebench_ray.scores import exact_sum

MISSING = "–"


@dataclass(frozen=True)
class LeaderboardRow:
    """A model's place.

    Attributes:
        place: 1 for the best; None for a model whose objective is not known.
        label: name for people.
        trial: where its scores are.
    """

    place: int | None
    label: str
    trial: Trial


def best_candidate(trials: Sequence[Trial]) -> Trial | None:
    """The search's winner, as it was scored on validation; None without any candidate that has a value.

    The one that was chosen on items held back, if any was. Otherwise the best by its objective, of those that keep all
    constraints; the earliest of equals; where none keeps them, the one that is least far from it.
    """
    chosen = next((trial for trial in trials if trial.chosen), None)
    if chosen is not None and (found := on_split(trials, chosen, "validation")) is not None:
        return found
    scored = [
        trial
        for trial in trials
        if trial.role == "candidate" and trial.split == "validation" and is_known(trial.objective.value)
    ]
    return min(scored, key=best_first, default=None)


def best_first(trial: Trial) -> tuple[float, float, int]:
    """A sort key: constraints first, then the objective, then the order of the search; without a value at the end."""
    objective = trial.objective
    if objective.value is None or not math.isfinite(objective.value):
        return math.inf, math.inf, trial.number
    missed = exact_sum(trial.constraints[name] for name in trial.missed)
    return missed, objective.value if objective.minimised else -objective.value, trial.number


def best_of_each_method(trials: Sequence[Trial]) -> list[Trial]:
    """The best candidate of each method on validation, by the method's name."""
    methods = sorted({trial.method for trial in trials if trial.role == "candidate" and trial.method})
    found = [best_candidate([trial for trial in trials if trial.method == method]) for method in methods]
    return [trial for trial in found if trial is not None]


def on_split(trials: Sequence[Trial], trial: Trial, split: Split) -> Trial | None:
    """The same model's row on a split, if it was scored there."""
    return next((other for other in trials if other.key == (trial.role, trial.name, trial.number, split)), None)


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The trials without candidates that are the same model as an earlier candidate of their split."""
    kept: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        same = (trial.digest,) if trial.role == "candidate" else (trial.role, trial.label)
        kept.setdefault((trial.split, *same), trial)
    return list(kept.values())


def leaderboard(trials: Sequence[Trial], split: Split, candidates: int = 1) -> list[LeaderboardRow]:
    """Reference rows and the best candidates of one split, best first; rows without a value last.

    A specialist scored on its own domain alone is the yardstick, not a competitor: it is left out.

    Args:
        trials: all trials of a run.
        split: whose scores to compare.
        candidates: how many of the best to include.
    """
    rows = [trial for trial in trials if trial.split == split]
    searched = sorted((trial for trial in rows if trial.role == "candidate"), key=best_first)[:candidates]
    others = [trial for trial in rows if trial.role in COMPARED_WITH]
    generalists = [trial for trial in rows if trial.role == "specialist" and is_known(trial.objective.value)]
    ordered = sorted([*searched, *others, *generalists], key=best_first)
    best = best_candidate(trials)
    result = []
    for index, trial in enumerate(ordered):
        place = index + 1 if is_known(trial.objective.value) else None
        is_best = best is not None and (trial.role, trial.name, trial.number) == (best.role, best.name, best.number)
        result.append(LeaderboardRow(place, f"best: {trial.label}" if is_best else describe(trial), trial))
    return result


def describe(trial: Trial) -> str:
    """Name of a model for people, which says what it is."""
    if trial.role == "average":
        return AVERAGE
    return f"{trial.name} (specialist)" if trial.role == "specialist" else trial.label


def objective_title(name: str, domains: Collection[str]) -> str:
    """What an objective is called on axes and over columns.

    Args:
        name: its name.
        domains: that were scored: one by its name is its specialist's share, not its score.
    """
    if name == FORGETTING:
        return "share kept of the base"
    return f"share of {name}" if name in domains else name.replace("_", " ")


def what_is_missed(trial: Trial) -> str:
    """What a model does not keep, in words; empty where it keeps all constraints."""
    return f"misses {', '.join(trial.missed)}" if trial.missed else ""


def with_objective(trial: Trial) -> str:
    """A model's objective with its standard error."""
    return with_error(trial.objective.value, trial.objective.standard_error)


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number with its standard error, such as ``0.912 ± 0.021``; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if error is None or not math.isfinite(error):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def domain_metric(trials: Sequence[Trial], domain: str) -> str | None:
    """What was counted in a domain; empty where it is not known, None where the trials do not agree."""
    found = {trial.domains[domain].metric for trial in trials if domain in trial.domains}
    return found.pop() if len(found) == 1 else None
