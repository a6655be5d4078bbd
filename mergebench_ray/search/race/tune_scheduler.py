"""A scheduler of Ray Tune as a race: it sees a candidate's objective at each look, and says whether to stop it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergebench_ray.errors import InputError, nearest, one_line
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.race import Race

STOPPING = ("ASHAScheduler", "AsyncHyperBandScheduler", "FIFOScheduler", "MedianStoppingRule")
"""Those that stop trials and do nothing else. Others pause trials for a bracket of theirs, or change what they try."""

_OURS = ("time_attr", "metric", "mode", "max_t", "stop_last_trials")
_TIME, _METRIC = "training_iteration", "objective"


@dataclass(frozen=True)
class _Trial:
    """What those schedulers ask of a trial."""

    trial_id: str


class _Controller:
    """What those schedulers ask of Tune: nobody waits for them."""

    def get_live_trials(self) -> list[_Trial]:
        return []


class TuneScheduler(Race):
    """What a scheduler of Ray Tune decides; its time is the number of items.

    Args:
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        look: items between two looks.
        candidates: how many are expected; not needed.
        name: class of the scheduler, one of `STOPPING`.
        options: keyword arguments of its constructor.

    Raises:
        InputError: no such scheduler, or options that it does not take.
    """

    def __init__(
        self,
        items: Items,
        objective: Objective,
        *,
        look: int = 20,
        candidates: int | None = None,
        name: str,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(items, objective, look=look, candidates=candidates)
        self._scheduler: Any = make_scheduler(name, options, first=self.first_look, items=self.items)
        self._trials: dict[int, _Trial] = {}
        self._controller = _Controller()

    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        if candidate not in self._trials:
            self._trials[candidate] = _Trial(str(candidate))
            self._scheduler.on_trial_add(self._controller, self._trials[candidate])
        value = self.board.value(candidate)
        result = {_TIME: answered, _METRIC: -np.inf if np.isnan(value) else value}
        trial = self._trials[candidate]
        if answered == self.items:
            self._scheduler.on_trial_complete(self._controller, trial, result)
            return [self._done(candidate)]
        if self._scheduler.on_trial_result(self._controller, trial, result) == self._scheduler.STOP:
            self._scheduler.on_trial_complete(self._controller, trial, result)
            return [self._stop(candidate)]
        return [self._go_on(candidate, self._next_look(answered))]


def make_scheduler(name: str, options: Mapping[str, Any], *, first: int, items: int) -> Any:
    """A scheduler of Ray Tune by its class name.

    Args:
        name: of the class.
        options: keyword arguments.
        first: items of the first look, before which nothing is stopped.
        items: of a candidate that is scored in full.

    Raises:
        InputError: no such scheduler, or options that it does not take.
    """
    for key in _OURS:
        if key in options:
            raise InputError(
                f"search.race.scheduler_options.{key}: the race sets it, for its time is the number of items and its "
                "metric the objective; leave it out"
            )
    if options.get("hard_stop") is False:
        raise InputError("search.race.scheduler_options.hard_stop: false would pause trials for good; leave it out")
    from ray.tune import schedulers

    kind = getattr(schedulers, name, None)
    if name not in STOPPING or kind is None:
        raise InputError(
            f"search.race.kind = {name!r:.80}: no scheduler of Ray Tune that stops trials and does nothing else; "
            f"{nearest(name, list(STOPPING))}"
        )
    accepted = inspect.signature(kind).parameters
    defaults = {"time_attr": _TIME, "metric": _METRIC, "mode": "max", "grace_period": first, "max_t": items}
    given = {key: value for key, value in defaults.items() if key in accepted} | dict(options)
    try:
        return kind(**given)
    except Exception as error:
        raise InputError(
            f"search.race.scheduler_options: {name} does not take them ({one_line(error)}); see Ray Tune's "
            "documentation"
        ) from error
