"""The final choice: the best candidates of a search, compared on items that it has not seen.

The best score of a search is too high: it was chosen for being high, by chance among other things. On fresh items that
chance is gone; among candidates that even those cannot tell apart, the simplest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergebench_ray.bank import Bank
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.config.objective import ChoiceSpec
from mergebench_ray.methods import get_method, parse_parameters
from mergebench_ray.placement.answers import FINALISTS
from mergebench_ray.runs.front import non_dominated
from mergebench_ray.runs.leaderboard import (
    best_first,
    by_choice,
    distinct,
    front,
    missed_by,
    short_of_floors,
    values_of,
)
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, is_known
from mergebench_ray.search.objectives.errors import Measured, difference
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.records import SIMPLE, Records
from mergebench_ray.search.scored_items import measured_from_items


@dataclass(frozen=True)
class FinalChoice:
    """Who was chosen.

    Attributes:
        chosen: the candidate's place among the finalists.
        tied: places of those that the items cannot tell from the best of them and that nothing else speaks against.
    """

    chosen: int
    tied: list[int]


def hold_finals(records: Records, store: TrialStore, bank: Bank, phase: Callable[[str], None]) -> None:
    """Score the best candidates on the final split, where all they are compared with is scored; mark the winner there.

    Args:
        records: scores what is not scored yet.
        store: the run's trials.
        bank: makes recipes of candidates.
        phase: called with what is found.
    """
    candidates = [
        records.merged("candidate", one.name, "final", bank.recipe(str(one.method), one.parameters), number=one.number)
        for one in finalists(store.trials())
    ]
    goal = records.goal("final")
    measured = [_measured(store, one) for one in candidates]
    members = {one.key[:-1] for one in front(store.trials())}
    choice = choose(goal, candidates, measured, [one.key[:-1] in members for one in candidates])
    if choice is None:
        phase("no candidate can be compared on the items held back: the best of the search is taken")
        return
    _mark(store, candidates[choice.chosen], [candidates[place] for place in choice.tied])
    note_differences(records, store, candidates[choice.chosen])


def note_differences(records: Records, store: TrialStore, trial: Trial) -> Trial:
    """Keep, in a model's row, how far it is above plain average and the simple merge on the same items.

    Returns:
        the row as it is now.
    """
    objective, own = records.goal(trial.split).objective, _measured(store, trial)
    row = next(one for one in store.trials() if one.key == trial.key)
    if objective.value(own.scores) is None:
        return row
    found = {}
    for other in store.trials():
        if other.split == trial.split and other.name in (AVERAGE, SIMPLE) and other.role != "candidate":
            measured = _measured(store, other)
            if objective.value(measured.scores) is not None:
                above = difference(objective, own, measured)
                found[other.name] = (above.value, above.error.total)
    row = replace(row, differences=found)
    store.replace(row)
    return row


def finalists(trials: Sequence[Trial]) -> list[Trial]:
    """The best distinct candidates on validation, best first; those that miss a constraint only where all do.

    Of several objectives the front, in the order of the sweep's choice, and, where it is small, what would be the front
    without it.
    """
    if any(one.choice is not None for one in trials):
        left = [one for one in distinct(trials) if (one.role, one.split) == ("candidate", "validation")]
        left = [one for one in left if one.is_scored and not one.missed] or left
        found: list[Trial] = []
        while len(found) < FINALISTS and (further := by_choice(front(left))):
            found += further
            left = [one for one in left if one not in further]
        return found[:FINALISTS]
    candidates = [one for one in distinct(trials) if (one.role, one.split) == ("candidate", "validation")]
    known = [one for one in candidates if is_known(one.objective.value)]
    keeping = [one for one in known if not one.missed]
    return sorted(keeping or known, key=best_first)[:FINALISTS]


def reopen(store: TrialStore) -> None:
    """Take the winner's mark back: there will be more candidates."""
    for row in store.trials():
        if row.chosen:
            store.replace(replace(row, chosen=False))


def choose_by(store: TrialStore, choice: ChoiceSpec) -> None:
    """Let the sweep's choice hold for all models of several objectives, where it was another when they were scored."""
    others = [row for row in store.trials() if row.choice not in (None, choice)]
    if others:
        reopen(store)
    for row in others:
        store.replace(replace(row, choice=choice, chosen=False))


def choose(
    goal: Goal, candidates: Sequence[Trial], measured: Sequence[Measured], on_front: Sequence[bool] | None = None
) -> FinalChoice | None:
    """The simplest of the finalists that two paired errors do not tell from the best of them; None without any value.

    Only those are compared that keep all constraints or, where none does, that are least far from it. Of those that are
    as simple, the search's best is taken, not the best on these items: its score here was then not chosen for being
    high, either. With several objectives the best is what the sweep's choice takes of the front on these items, and
    what differs from it in any objective is told from it. Those that keep the choice's floors go before those that do
    not, then members of the search's front before those next to it, however simple.

    Args:
        goal: bound to the references' scores on the same items.
        candidates: the finalists' rows on the split that is held back, the search's best first.
        measured: what each scored there.
        on_front: which of them are members of the search's front; None where there is one objective.
    """
    known = [
        place
        for place, found in enumerate(measured)
        if all(one.value(found.scores) is not None for one in goal.objectives)
    ]
    if not known:
        return None
    least = min(missed_by(candidates[place]) for place in known)
    running = [place for place in known if missed_by(candidates[place]) == least]
    best = running[_best_of([candidates[place] for place in running])]
    short = short_of_floors(candidates[best])
    tied = [
        place
        for place in running
        if place == best
        or (
            short_of_floors(candidates[place]) <= short
            and all(difference(one, measured[best], measured[place]).is_within for one in goal.objectives)
        )
    ]
    if goal.several and on_front is not None:
        tied = [place for place in tied if on_front[place]] or tied
    chosen = min(tied, key=lambda place: (complexity(candidates[place]), place))
    return FinalChoice(chosen, tied)


def _best_of(rows: Sequence[Trial]) -> int:
    """Place of the best by its objective, or of what the choice takes of the front of several."""
    if rows[0].choice is None:
        return min(range(len(rows)), key=lambda place: best_first(rows[place]))
    on_front = [row for row, is_on in zip(rows, non_dominated(values_of(rows)).tolist()) if is_on]
    return rows.index(by_choice(on_front)[0])


def complexity(trial: Trial) -> tuple[bool, int]:
    """What makes a candidate less simple than another: that its method sees data, and how many numbers it takes."""
    assert trial.method is not None
    parameters = parse_parameters(trial.method, dict(trial.parameters))
    sees_data = bool(get_method(trial.method).calibration_samples(parameters))
    return sees_data, sum(len(set(_numbers(value))) for value in trial.parameters.values())


def _mark(store: TrialStore, winner: Trial, tied: Sequence[Trial]) -> None:
    """Say in the rows of all candidates on the final split who won; before there were more trials it was another."""
    keys, labels = {one.key for one in tied}, {one.label for one in tied}
    for row in store.trials():
        if (row.role, row.split) == ("candidate", "final"):
            others = tuple(sorted(labels - {row.label})) if row.key in keys else ()
            store.replace(replace(row, chosen=row.key == winner.key, tied_with=others, differences={}))


def _measured(store: TrialStore, trial: Trial) -> Measured:
    return measured_from_items(trial, store.items(trial))


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [number for part in value.values() for number in _numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value]
