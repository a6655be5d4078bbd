"""The final choice: the best candidates of a search, scored on items that it has not seen.

The best score of a search is too high: it was chosen for being high, by chance among other things. On fresh items that
chance is gone. Who wins says `final_choice`; what it scored on the fresh items is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mergebench_ray.bank import Bank
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.config.objective import ChoiceSpec
from mergebench_ray.placement.answers import FINALISTS
from mergebench_ray.runs.leaderboard import (
    best_first,
    by_choice,
    distinct,
    front,
)
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, is_known
from mergebench_ray.search.final_choice import Compared, choose
from mergebench_ray.search.objectives.errors import difference
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.records import SIMPLE, Records
from mergebench_ray.search.scored_items import measured_from_items


def hold_finals(records: Records, store: TrialStore, bank: Bank, phase: Callable[[str], None]) -> None:
    """Score the best candidates on the final split, where all they are compared with is scored; mark the winner there.

    Args:
        records: scores what is not scored yet.
        store: the run's trials.
        bank: makes recipes of candidates.
        phase: called with what is found.
    """
    searched = finalists(store.trials())
    candidates = [
        records.merged("candidate", one.name, "final", bank.recipe(str(one.method), one.parameters), number=one.number)
        for one in searched
    ]
    members = {one.key[:-1] for one in front(store.trials())}
    splits = [
        Compared(records.goal("validation"), searched, [_measured(store, one) for one in searched]),
        Compared(records.goal("final"), candidates, [_measured(store, one) for one in candidates]),
    ]
    choice = choose(splits, [one.key[:-1] in members for one in candidates])
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


def _mark(store: TrialStore, winner: Trial, tied: Sequence[Trial]) -> None:
    """Say in the rows of all candidates on the final split who won; before there were more trials it was another."""
    keys, labels = {one.key for one in tied}, {one.label for one in tied}
    for row in store.trials():
        if (row.role, row.split) == ("candidate", "final"):
            others = tuple(sorted(labels - {row.label})) if row.key in keys else ()
            store.replace(replace(row, chosen=row.key == winner.key, tied_with=others, differences={}))


def _measured(store: TrialStore, trial: Trial) -> Measured:
    return measured_from_items(trial, store.items(trial))
