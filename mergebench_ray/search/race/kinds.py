"""The kinds of race by name; a new kind is a file and a row here."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from mergebench_ray.config.race import AUTO, NONE, RaceOptions
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.search.objectives.goal import Constraint
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.exact import Exact
from mergebench_ray.search.race.front import FrontPool, SparingFrontPool
from mergebench_ray.search.race.full import FullScoring
from mergebench_ray.search.race.halving import Halving
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.pool import Pool, SparingPool
from mergebench_ray.search.race.race import Race
from mergebench_ray.search.race.tune_scheduler import STOPPING, TuneScheduler, make_scheduler

__all__ = ["KINDS", "OF_SEVERAL", "STOPPING", "check_race", "look_of", "make_race", "race_class"]

KINDS: dict[str, type[Race]] = {
    "pool": Pool,
    "sparing": SparingPool,
    "halving": Halving,
    "exact": Exact,
    NONE: FullScoring,
}
"""Name -> class; the keyword arguments of its constructor are the kind's settings."""

OF_SEVERAL: dict[str, type[FrontPool]] = {"pool": FrontPool, "sparing": SparingFrontPool}
"""The same of those that race for the front of several objectives; these kinds know of constraints, too."""

_SETTINGS = ("look", "p", "survivors", "alpha")


def race_class(kind: str) -> type[Race]:
    """The class of a kind, or of a scheduler of Ray Tune."""
    return TuneScheduler if kind in STOPPING else KINDS[kind]


def make_race(
    options: RaceOptions,
    items: Items,
    objective: Objective,
    candidates: int | None,
    several: Sequence[Objective] = (),
    constraints: Sequence[Constraint] = (),
) -> Race:
    """A new race.

    Args:
        options: as `check_race` passed them, with a kind that is not `AUTO`.
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        candidates: how many are expected; None where that is not known.
        several: what they are compared by instead, where it is several.
        constraints: what a winner has to keep.

    Raises:
        InputError: a kind that the objective does not allow, or that knows one alone, or of no constraints.
    """
    given: dict[str, Any] = {name: value for name, value in _given(options).items() if name in _SETTINGS}
    if options.kind in STOPPING:
        given |= {"name": options.kind, "options": options.scheduler_options}
    if several and options.kind != NONE:
        if options.kind not in OF_SEVERAL:
            raise InputError(
                f"search.race.kind = {options.kind!r}: it knows one objective, and there are {len(several)}; choose "
                f"{' or '.join(OF_SEVERAL)}, or leave search.race out"
            )
        given |= {"constraints": constraints}
        return OF_SEVERAL[options.kind](items, objective, several=several, candidates=candidates, **given)
    if constraints and options.kind != NONE:
        if options.kind not in OF_SEVERAL:
            raise InputError(
                f"search.race.kind = {options.kind!r}: it does not know of search.constraints, so it would stop what "
                f"keeps them; choose {' or '.join(OF_SEVERAL)}, or leave search.race out"
            )
        given |= {"constraints": constraints}
    return race_class(options.kind)(items, objective, candidates=candidates, **given)


def look_of(options: RaceOptions) -> int:
    """Items between two looks."""
    default: int = inspect.signature(race_class(options.kind)).parameters["look"].default
    return options.look or default


def check_race(options: RaceOptions) -> None:
    """Check what a sweep says of its race.

    Raises:
        InputError: an unknown kind, or a setting that it does not have.
    """
    kind = options.kind
    if kind in STOPPING or kind not in (AUTO, *KINDS):
        _check_scheduler(options)
        return
    given = set(_given(options))
    if "scheduler_options" in given:
        raise InputError(
            f"search.race.scheduler_options: {kind} is no scheduler of Ray Tune; leave them out, or name one as kind"
        )
    known = set() if kind in (AUTO, NONE) else set(inspect.signature(KINDS[kind]).parameters) & set(_SETTINGS)
    known |= {"in_flight"} if kind != AUTO else set()
    for name in (*_SETTINGS, "in_flight"):
        if name in given - known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none; name a kind such as pool"
            raise InputError(f"search.race.{name}: no setting of {kind}; {has}")


def _check_scheduler(options: RaceOptions) -> None:
    if options.kind not in STOPPING and not options.kind[:1].isupper():
        raise InputError(
            f"search.race.kind = {options.kind!r:.80}: no such race; {nearest(options.kind, [AUTO, *KINDS, *STOPPING])}"
        )
    make_scheduler(options.kind, options.scheduler_options, first=1, items=10**9)
    for name in set(_given(options)) - {"look", "in_flight", "scheduler_options"}:
        raise InputError(f"search.race.{name}: no setting of {options.kind}; it has look, in_flight, scheduler_options")


def _given(options: RaceOptions) -> dict[str, Any]:
    return {
        name: value for name, value in options.model_dump(exclude={"kind"}).items() if value is not None and value != {}
    }
