"""The numbers of a search space as shares of their ranges, and where a model sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

Floats = npt.NDArray[np.float64]

_APART = 0.5  # between two choices, as a share of a range, along each of their axes


class Axis:
    """One number of a space as a share of its range, 0 to 1, and where the model sees it."""

    def __init__(self, distribution: BaseDistribution) -> None:
        assert isinstance(distribution, FloatDistribution | IntDistribution | CategoricalDistribution)
        self._distribution = distribution
        self.num_choices = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0

    @property
    def num_values(self) -> float:
        """How many values there are; infinity where they are not whole."""
        if isinstance(self._distribution, IntDistribution):
            return self._distribution.high - self._distribution.low + 1
        return self.num_choices or math.inf

    def unit(self, value: Any) -> float:
        """The share that stands for a value."""
        one = self._distribution
        if isinstance(one, CategoricalDistribution):
            return float(one.to_internal_repr(value) + 0.5) / self.num_choices
        scale = math.log if one.log else float
        return (scale(value) - scale(one.low)) / (scale(one.high) - scale(one.low))

    def value(self, unit: float) -> Any:
        """The value that a share stands for."""
        one = self._distribution
        if isinstance(one, CategoricalDistribution):
            return one.choices[min(int(unit * self.num_choices), self.num_choices - 1)]
        if one.log:
            number = math.exp(math.log(one.low) + unit * (math.log(one.high) - math.log(one.low)))
        else:
            number = one.low + unit * (one.high - one.low)
        number = min(max(number, one.low), one.high)
        return round(number) if isinstance(one, IntDistribution) else number

    def point(self, units: Floats) -> Floats:
        """Where the model sees some shares, (N, 1), or (N, number of choices)."""
        if self.num_choices:
            chosen = np.minimum((units * self.num_choices).astype(int), self.num_choices - 1)
            corners: Floats = _APART * np.eye(self.num_choices)[chosen]
            return corners
        if isinstance(self._distribution, IntDistribution):
            units = np.array([self.unit(self.value(unit)) for unit in units])
        return units[:, None]


class Numbers:
    """The searched numbers of a method.

    Args:
        space: name -> what the number may be; one that may have one value only is no axis.

    Attributes:
        space: the axes' names and what they may be.
        is_choice: of each axis, whether it is a choice.
        num_candidates: how many candidates there are; infinity where a number is not whole.
        width: axes of the points where a model sees candidates.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = {name: one for name, one in space.items() if not one.single()}
        self._axes = [Axis(one) for one in self.space.values()]
        self.is_choice = np.array([axis.num_choices > 0 for axis in self._axes], dtype=bool)
        counts = [axis.num_values for axis in self._axes]
        self.num_candidates = math.inf if math.inf in counts else math.prod(counts)
        self.width = sum(axis.num_choices or 1 for axis in self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def values(self, units: Sequence[float] | Floats) -> dict[str, Any]:
        """The values that a candidate's shares stand for."""
        return {name: axis.value(unit) for name, axis, unit in zip(self.space, self._axes, units, strict=True)}

    def units(self, trials: Sequence[FrozenTrial]) -> Floats:
        """The shares that trials stand for, (N, axes)."""
        rows = [[axis.unit(one.params[name]) for name, axis in zip(self.space, self._axes)] for one in trials]
        return np.array(rows, dtype=float).reshape(len(trials), len(self))

    def points(self, units: Floats) -> Floats:
        """Where a model sees some shares, (N, D)."""
        return np.hstack([np.zeros((len(units), 0)), *(axis.point(units[:, i]) for i, axis in enumerate(self._axes))])
