"""Ranges that grow (`grow_to`): where candidates are drawn from, and when a bound moves on.

A study knows a number by the widest range that it may have, which never changes; what is narrower is shown to the
sampler alone. So all that a range is made of is in the study, and a search that goes on after an interruption has the
same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mergebench_ray.search.numbers import Floats
from mergebench_ray.search.space import Space

_log = logging.getLogger(__name__)

_FEWEST = 8
"""Candidates that are known before a bound moves."""
_BEST = 5
"""Of which the middle one tells where the best lie."""
_AT_THE_EDGE = 0.15
"""How near to a bound that is, as a share of the range."""
_STEP = 0.5
"""How far a bound moves, as a share of the range that the search begins with."""


class GrowingRanges:
    """The ranges of a space's numbers that grow, at any trial of a study.

    A bound moves on where the middle one of the best candidates lies near it, as often as that is so: candidates beyond
    it have to be tried in between. What was tried always lies within.

    Args:
        space: what may be tried.
    """

    def __init__(self, space: Space) -> None:
        self._begin = space.beginnings
        self._widest = {key: one for method in space.methods for key, one in space.distributions(method).items()}

    def __bool__(self) -> bool:
        return bool(self._begin)

    def at(self, study: optuna.Study, number: int) -> dict[str, BaseDistribution]:
        """The ranges that the candidate of this number is drawn from."""
        trials = [one for one in study.get_trials(deepcopy=False) if one.params]
        told = [one for one in trials if one.number < number and one.state == TrialState.COMPLETE]
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        found: dict[str, BaseDistribution] = {}
        together: dict[tuple[int, ...], list[str]] = {}  # numbers of one method are in the same trials
        for key in self._begin:
            known = tuple(place for place, one in enumerate(told) if key in one.params)
            together.setdefault(known, []).append(key)
        for places, keys in together.items():
            bounds = self._bounds(keys, [told[place] for place in places], sign)
            for key, (low, high) in zip(keys, bounds.tolist(), strict=True):
                found[key] = self._around(key, low, high, [one.params[key] for one in trials if key in one.params])
        return found

    def _bounds(self, keys: Sequence[str], told: Sequence[FrozenTrial], sign: float) -> Floats:
        """Bounds of some numbers after the trials that have them, on the scale that is searched, (keys, 2)."""
        begin, widest = (np.array([self._ends(key, of[key]) for key in keys]) for of in (self._begin, self._widest))
        bounds, step = begin.copy(), _STEP * (begin[:, 1] - begin[:, 0])
        values = np.array([[self._scaled(key, one.params[key]) for key in keys] for one in told])
        order = sorted(range(len(told)), key=lambda place: _rank(told[place], sign))
        for count in range(_FEWEST, len(told) + 1):
            best = [place for place in order if place < count][:_BEST]
            middle = np.median(values[best], axis=0)
            near = _AT_THE_EDGE * (bounds[:, 1] - bounds[:, 0])
            moved = np.array([middle < bounds[:, 0] + near, middle > bounds[:, 1] - near]).T
            bounds += moved * step[:, None] * [-1.0, 1.0]
            bounds = np.clip(bounds, widest[:, :1], widest[:, 1:])
        return bounds

    def _scaled(self, key: str, value: float) -> float:
        return math.log(value) if self._begin[key].log else float(value)  # type: ignore[attr-defined]

    def _ends(self, key: str, distribution: BaseDistribution) -> tuple[float, float]:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return self._scaled(key, distribution.low), self._scaled(key, distribution.high)

    def _around(self, key: str, low: float, high: float, tried: Sequence[float]) -> BaseDistribution:
        """The range of a number around what was tried, whose ends are on the scale that is searched."""
        begin, widest = self._begin[key], self._widest[key]
        assert isinstance(begin, FloatDistribution | IntDistribution)
        assert isinstance(widest, FloatDistribution | IntDistribution)
        if widest.log:
            low, high = math.exp(low), math.exp(high)
        low, high = max(widest.low, min(low, begin.low, *tried)), min(widest.high, max(high, begin.high, *tried))
        if isinstance(widest, IntDistribution):
            return IntDistribution(math.floor(low), math.ceil(high), log=widest.log)
        return FloatDistribution(low, high, log=widest.log)


def _rank(trial: FrozenTrial, sign: float) -> tuple[float, float, int]:
    """What brings a trial before another: how far it is from keeping the constraints, then its value."""
    missed = sum(max(distance, 0.0) for distance in trial.constraints.values())
    return missed, -sign * trial.values[0], trial.number


class SamplerOfGrowing(optuna.samplers.BaseSampler):
    """Shows a sampler the ranges as they are at its trial.

    Args:
        sampler: proposes from the ranges that it is shown.
        ranges: of the numbers that grow.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, ranges: GrowingRanges) -> None:
        self._sampler, self._ranges = sampler, ranges
        self._number, self._shown = -1, dict[str, BaseDistribution]()

    @property
    def made_of(self) -> optuna.samplers.BaseSampler:
        """The sampler that was made last."""
        made: optuna.samplers.BaseSampler = getattr(self._sampler, "made_of", self._sampler)
        return made

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._number = -1
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does, with the ranges as they are."""
        return self._narrowed(study, trial, self._sampler.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._sampler.sample_relative(study, trial, self._narrowed(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does, of the range as it is."""
        narrowed = self._narrowed(study, trial, {param_name: param_distribution})
        return self._sampler.sample_independent(study, trial, param_name, narrowed[param_name])

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._sampler.after_trial(study, trial, state, values)

    def _narrowed(
        self, study: optuna.Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution]
    ) -> dict[str, BaseDistribution]:
        if trial.number != self._number:
            before, self._number, self._shown = self._shown, trial.number, self._ranges.at(study, trial.number)
            for name, one in self._shown.items():
                if name in before and before[name] != one:
                    _log.info("candidate %d: %s may be %s now", trial.number, name, _words(one))
        return {name: self._shown.get(name, one) for name, one in space.items()}


def _words(one: BaseDistribution) -> str:
    assert isinstance(one, FloatDistribution | IntDistribution)
    return f"{one.low:.4g} to {one.high:.4g}"
