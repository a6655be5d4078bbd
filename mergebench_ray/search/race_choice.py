"""Which race a sweep's candidates are in: its kind, its items, their order."""

from __future__ import annotations

from collections.abc import Sequence

from mergebench_ray.config import Sweep
from mergebench_ray.config.race import AUTO, NONE, RaceOptions
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import check_looks
from mergebench_ray.evaluation.order import Order
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.kinds import look_of, make_race, race_class
from mergebench_ray.search.race.tune_scheduler import STOPPING, make_scheduler
from mergebench_ray.search.race_order import RaceOrder
from mergebench_ray.search.scores_by_item import known_of_items, scores_by_item
from mergebench_ray.tasks.scored_task import ScoredTask

_DEFAULT = "pool"
_SHARES = {NONE: (1.0, 1.0), "pool": (0.17, 0.25), "sparing": (0.1, 0.15), "halving": (0.2, 0.25)}
_ANY_SHARE = (0.2, 1.0)
"""Of the items of all candidates, what is asked, from and to: docs/replay.md says how it was measured."""
_SHARE_OF_SEVERAL = (0.25, 1.0)
"""The same of a race for the front of several objectives, from two to many: docs/objectives.md."""
_MOST_IN_FULL = 8
"""Candidates that are not raced unless asked for: the pool's survivors are as many."""
_LOOKS_IN_FLIGHT_ON_GPUS = 4
"""How many looks' items a GPU computes at a time: it would be idle with those of one."""


def chosen_race(sweep: Sweep, tasks: Sequence[ScoredTask]) -> tuple[RaceOptions, list[str]]:
    """The race of a sweep, with a kind that is not `AUTO`, and what is to be said of the choice.

    Args:
        sweep: has passed `check_sweep`.
        tasks: of the validation split.

    Raises:
        InputError: a race was asked for that a task's metric, or the number of items, does not allow.
    """
    options = sweep.search.race
    if options.kind != AUTO:
        if options.kind != NONE or options.in_flight is not None:
            check_looks(tasks)
        if options.kind in STOPPING:
            make_scheduler(options.kind, options.scheduler_options, first=1, items=sum(len(one.items) for one in tasks))
        return options, []
    in_full = RaceOptions(kind=NONE)
    if sweep.search.most_candidates <= _MOST_IN_FULL:
        return in_full, []
    try:
        check_looks(tasks)
    except InputError as error:
        reason = str(error).partition(", so candidates")[0]
        return in_full, [f"candidates are scored in full, without a race: {reason}"]
    return RaceOptions(kind=_DEFAULT), []


def expected_share(race: RaceOptions, objectives: int, *, constraints: bool = False) -> tuple[float, float]:
    """Of the items of all candidates, the share that a race by so many objectives asks, from and to."""
    if race.kind != NONE and (objectives > 1 or constraints):
        return _SHARE_OF_SEVERAL if objectives > 1 else _ANY_SHARE
    return _SHARES.get(race.kind, _ANY_SHARE)


def race_of_run(race: RaceOptions, sweep: Sweep, run: RunFolder) -> RaceOptions:
    """The race that a run goes on with: one that `auto` has begun with more candidates is not left."""
    return RaceOptions(kind=_DEFAULT) if sweep.search.race.kind == AUTO and run.decisions_file.is_file() else race


def race_of(
    options: RaceOptions, sweep: Sweep, run: RunFolder, store: TrialStore, goal: Goal, candidates: int | None
) -> RaceOrder | None:
    """A run's race before anything is decided; None where all items are asked at once.

    Args:
        options: as `chosen_race` found.
        sweep: whose seed fixes the order.
        run: has what the references answered.
        store: its trials.
        goal: what candidates are compared by.
        candidates: how many are expected; None where nothing tells.
    """
    if options.kind == NONE and options.in_flight is None:
        return None
    trials = store.trials()
    base = next(trial for trial in trials if (trial.role, trial.split) == ("base", "validation"))
    found = scores_by_item(run.path, base)
    keys, clusters = list(found), [cluster for _, cluster in found.values()]
    domains, tasks = [domain for domain, _, _ in keys], [task for _, task, _ in keys]
    items = Items.of(domains, tasks, clusters, known_of_items(run.path, trials, "validation", keys))
    places = race_class(options.kind).order(items, sweep.search.seed)
    race = make_race(options, items.taken(places), goal.objective, candidates, goal.several, goal.constraints)
    return RaceOrder(race, tuple(places.tolist()))


def raced_besides(trials: Sequence[Trial]) -> int:
    """How many candidates of other runs a race begins with: those that were scored in full."""
    return sum(one.role == "candidate" and bool(one.taken_from) for one in searched(trials))


def in_flight_of(options: RaceOptions, *, on_gpus: bool) -> int | None:
    """Sequences that an engine computes at a time; None where no race and no setting bounds them."""
    if options.kind == NONE or options.in_flight:
        return options.in_flight
    return look_of(options) * (_LOOKS_IN_FLIGHT_ON_GPUS if on_gpus else 1)


def order_of(options: RaceOptions, raced: RaceOrder, *, on_gpus: bool) -> Order:
    """How the engines are asked."""
    look = look_of(options)
    in_flight = in_flight_of(options, on_gpus=on_gpus)
    assert in_flight is not None, "where nothing bounds it, there is no order"
    # A GPU computes few sequences hardly faster than many, so that what goes on would only wait.
    alone = 0 if on_gpus else raced.race.first_look
    looks = () if options.kind == NONE else tuple(range(look, len(raced.places), look))
    return Order(raced.places, in_flight, alone, looks)
