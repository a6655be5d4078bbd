"""Who is best: reference models and the best candidates, ordered by what the search is after."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergebench_ray.config.fields import Split
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.config.objective import FORGETTING, KNEE, ByFloors, ChoiceSpec, choice_values
from mergebench_ray.runs.front import Floats, chosen_first, non_dominated, shortfalls
from mergebench_ray.runs.trials import COMPARED_WITH, Trial, is_known
from mergebench_ray.scores import ObjectiveValue, exact_sum

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

    The one that was chosen with the items held back, if any was. Otherwise the best by its objective, or what the
    sweep's choice takes of the front of several, of those that keep all constraints; the earliest of equals; where none
    keeps them, the one that is least far from it.
    """
    chosen = next((trial for trial in trials if trial.chosen), None)
    if chosen is not None and (found := on_split(trials, chosen, "validation")) is not None:
        return found
    if any(trial.choice is not None for trial in trials):
        return next(iter(by_choice(front(trials))), None)
    scored = [trial for trial in trials if (trial.role, trial.split) == ("candidate", "validation") and trial.is_scored]
    return min(scored, key=best_first, default=None)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Distinct candidates on validation of which no other is better in everything, in the order of the search.

    Of those that keep all constraints, or where none does, that are least far from it. Of one objective the best alone.
    """
    rows = [trial for trial in distinct(trials) if (trial.role, trial.split) == ("candidate", "validation")]
    scored = [trial for trial in rows if trial.is_scored]
    least = min(map(missed_by, scored), default=0.0)
    keeping = sorted((trial for trial in scored if missed_by(trial) == least), key=lambda trial: trial.number)
    if not keeping:
        return []
    return [trial for trial, is_on in zip(keeping, non_dominated(values_of(keeping)).tolist()) if is_on]


def by_choice(trials: Sequence[Trial]) -> list[Trial]:
    """Models with several objectives in the order in which their sweep's choice takes them."""
    if not trials:
        return []
    own = [[one.own_error or 0.0 for one in aims_of(trial).values()] for trial in trials]
    names, errors = list(aims_of(trials[0])), np.nan_to_num(np.array(own), posinf=0.0)
    return [trials[place] for place in chosen_first(_turned(trials[0]), names, values_of(trials), errors)]


def short_of_floors(trial: Trial) -> float:
    """How far a model is below the floors of its sweep's choice; 0 where it keeps them, and without any."""
    return float(shortfalls(_turned(trial), list(aims_of(trial)), values_of([trial]))[0])


def _turned(trial: Trial) -> ChoiceSpec:
    """The choice for values that are turned so that more is better: of an objective that is not, a floor is a most."""
    choice, aims = trial.choice or KNEE, trial.objectives
    if isinstance(choice, str) or "weights" in choice:
        return choice
    floors = choice_values(choice).items()
    turned: ByFloors = {"floors": {name: -least if aims[name].minimised else least for name, least in floors}}
    return turned


def aims_of(trial: Trial) -> Mapping[str, ObjectiveValue]:
    """All that a search is after, by name; the normalised average where the row says nothing else."""
    return trial.objectives or {trial.objective_name: trial.objective}


def values_of(trials: Sequence[Trial]) -> Floats:
    """Values of all that a search is after, known and turned so that more is better, (models, objectives)."""
    aims = [list(aims_of(trial).values()) for trial in trials]
    return np.array([[-(one.value or 0.0) if one.minimised else one.value for one in row] for row in aims], float)


def missed_by(trial: Trial) -> float:
    """How far a model is from keeping all constraints; 0 where it does."""
    return exact_sum(trial.constraints[name] for name in trial.missed)


def best_first(trial: Trial) -> tuple[float, float, int]:
    """A sort key: constraints first, then the objective, then the order of the search; without a value at the end."""
    objective = trial.objective
    if objective.value is None or not math.isfinite(objective.value):
        return math.inf, math.inf, trial.number
    return missed_by(trial), objective.value if objective.minimised else -objective.value, trial.number


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


def with_objectives(trial: Trial) -> str:
    """A model's several objectives with their standard errors, by name; empty where there is one."""
    if len(trial.objectives) < 2:
        return ""
    return ", ".join(
        f"{objective_title(name, trial.domains)} {with_error(one.value, one.standard_error)}"
        for name, one in trial.objectives.items()
    )


def choice_title(choice: ChoiceSpec) -> str:
    """What takes one model of a front, in words that follow "chosen by"."""
    values = choice_values(choice)
    if isinstance(choice, str):
        return "the knee"
    if "weights" in choice:
        return f"weights ({', '.join(f'{name} {weight:g}' for name, weight in values.items())})"
    return f"floors ({', '.join(f'{name} at least {least:g}' for name, least in values.items())})"


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
