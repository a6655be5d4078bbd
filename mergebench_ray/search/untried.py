"""What of a space was not proposed yet; and a sampler that goes there where it finds nothing new by itself."""

from __future__ import annotations

import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from mergebench_ray.search.numbers import Numbers
from mergebench_ray.search.space import METHOD, Space

_log = logging.getLogger(__name__)

SAME_AS = "same_as"
"""User attribute of a trial that repeats another: that one's number. It has failed, so that it counts for nothing."""
_MOST_REPEATED = 10
"""Proposals in a row that were made before, until one is drawn at random among what was not."""


class Untried:
    """The candidates of a space that no trial is.

    Args:
        space: what may be tried.
        trials: what was proposed, whatever came of it.
    """

    def __init__(self, space: Space, trials: Sequence[FrozenTrial]) -> None:
        self._numbers = {method: Numbers(space.distributions(method)) for method in space.methods}
        self._several = len(self._numbers) > 1
        self._tried: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
        for trial in trials:
            method = str(trial.params.get(METHOD)) if self._several else space.methods[0]
            numbers = self._numbers.get(method)
            if numbers is not None and numbers.space.keys() <= trial.params.keys():
                self._tried[method].add(tuple(trial.params[name] for name in numbers.space))

    @property
    def num_tried(self) -> int:
        """Different candidates that the trials are."""
        return sum(map(len, self._tried.values()))

    @property
    def methods(self) -> list[str]:
        """The methods that have a candidate left."""
        return [one for one, numbers in self._numbers.items() if len(self._tried[one]) < numbers.num_candidates]

    def draw(self, random: np.random.Generator) -> dict[str, Any]:
        """One of them, by the names of its numbers: any method that has one left, with any numbers."""
        method = str(random.choice(self.methods))
        numbers = self._numbers[method]
        while True:
            values = numbers.values(random.random(len(numbers)))
            if tuple(values.values()) not in self._tried[method]:
                return {METHOD: method, **values} if self._several else values


class SamplerOfUntried(optuna.samplers.BaseSampler):
    """Proposes what a sampler does, but no method all of whose candidates were proposed, and nothing again for ever.

    What it does is a function of the trial's number and the trials before it, as far as that is so of the sampler.

    Args:
        sampler: proposes.
        space: what may be tried.
        seed: of the search.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, space: Space, seed: int) -> None:
        self._sampler, self._space, self._seed = sampler, space, seed
        self._everything: dict[str, BaseDistribution] = {METHOD: CategoricalDistribution(space.methods)}
        self._endless = set()
        for method in space.methods:
            numbers = space.distributions(method)
            self._everything |= numbers
            if math.isinf(Numbers(numbers).num_candidates):
                self._endless.add(method)

    @property
    def made_of(self) -> optuna.samplers.BaseSampler:
        """The sampler that proposes, or the one that this made last."""
        made: optuna.samplers.BaseSampler = getattr(self._sampler, "made_of", self._sampler)
        return made

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does; all numbers where it only repeats itself."""
        inferred = self._sampler.infer_relative_search_space(study, trial)
        return self._everything if self._repeats_itself(study, trial) else inferred

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does, with another method where its own has nothing left."""
        if self._repeats_itself(study, trial) and (untried := self._untried(study, trial)).methods:
            _log.warning(
                "candidate %d is drawn at random of what was not tried: the sampler has proposed nothing new %d times",
                *(trial.number, _MOST_REPEATED),
            )
            return untried.draw(self._random(trial))
        proposed = self._sampler.sample_relative(study, trial, search_space)
        if METHOD in proposed:
            proposed[METHOD] = self._with_something_left(study, trial, proposed[METHOD])
        return proposed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does, with another method where its own has nothing left."""
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._with_something_left(study, trial, value) if param_name == METHOD else value

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._sampler.after_trial(study, trial, state, values)

    def all_tried(self, study: optuna.Study) -> int | None:
        """How many candidates there are, where all of them were proposed; None where there are others."""
        grid = self.made_of
        at_its_end = isinstance(grid, optuna.samplers.GridSampler) and grid.is_exhausted(study)
        if self._endless and not at_its_end:
            return None
        trials = study.get_trials(deepcopy=False)
        untried = Untried(self._space, trials)
        is_queued = any(one.state == TrialState.WAITING for one in trials)
        return untried.num_tried if (at_its_end or not untried.methods) and not is_queued else None

    def _repeats_itself(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        latest = study.get_trials(deepcopy=False)[max(0, trial.number - _MOST_REPEATED) : trial.number]
        return len(latest) == _MOST_REPEATED and all(SAME_AS in one.user_attrs for one in latest)

    def _with_something_left(self, study: optuna.Study, trial: FrozenTrial, method: str) -> str:
        if method in self._endless:
            return method
        left = self._untried(study, trial).methods
        return method if method in left or not left else str(self._random(trial).choice(left))

    def _untried(self, study: optuna.Study, trial: FrozenTrial) -> Untried:
        return Untried(self._space, study.get_trials(deepcopy=False)[: trial.number])

    def _random(self, trial: FrozenTrial) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr((self._seed, trial.number)).encode()))
