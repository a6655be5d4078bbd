"""Proposals for a space of a few numbers: a Gaussian process that knows how exactly each candidate was scored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import cholesky, solve_triangular
from scipy.special import ndtr
from scipy.stats import qmc

Floats = npt.NDArray[np.float64]

STARTUP = 8  # candidates spread evenly before there is a model

# Length scales, as shares of a range, and variances, as multiples of what the errors do not explain of the scores' own.
# The likelihood chooses with what a few scores of a merge usually look like in mind: smooth over half a range. A few
# dozen noisy scores say too little for more than two such numbers.
_LENGTHS, _USUAL_LENGTH, _LENGTH_SPREAD = (0.3, 0.4, 0.55, 0.75, 1.0, 1.4), 0.6, 0.4
_VARIANCES, _USUAL_VARIANCE, _VARIANCE_SPREAD = (1.0, 2.0, 4.0, 8.0), 2.5, 0.7
_USUAL_NUMBERS = 5  # whose length scale is the usual one; in more dimensions all distances are larger
UNKNOWN_ERROR = 0.3  # of a candidate's score where none is known, as a share of the scores' spread
_BEST, _LATEST = 100, 200  # candidates that a model is made of; of more it would take longer than it is worth
_DRAWN, _RADII, _KEPT, _AROUND = 1000, (0.1, 0.05, 0.02, 0.01), 10, 30
_APART = 0.5  # between two choices, as a share of a range, along each of their axes


class GaussianProcess:
    """A smooth function through noisy values, with its own uncertainty.

    Squared exponential kernel, constant mean, known noise; length scale and variance are the most probable of a few.

    Args:
        points: where, (N, D), in ranges of about 1.
        values: what was seen there, (N,).
        errors: standard error of each value, (N,).
        numbers: how many numbers the D axes stand for.
    """

    def __init__(self, points: Floats, values: Floats, errors: Floats, numbers: int) -> None:
        self._points = points
        distances = _squared_distances(points, points)
        spread = max(float(np.var(values) - np.mean(errors**2)), 0.1 * float(np.var(values)), 1e-12)
        stretch = math.sqrt(numbers / _USUAL_NUMBERS)
        most_probable = -math.inf
        for length, variance in itertools.product(_LENGTHS, _VARIANCES):
            kernel = variance * spread * np.exp(distances / (-2 * (length * stretch) ** 2))
            factor = cholesky(kernel + np.diag(errors**2 + 1e-6 * variance * spread), lower=True)
            ones, seen = (solve_triangular(factor, side, lower=True) for side in (np.ones(len(values)), values))
            mean = float(ones @ seen / (ones @ ones))
            rest = seen - mean * ones
            log_density = -0.5 * float(rest @ rest) - float(np.log(np.diag(factor)).sum()) - 0.5 * math.log(ones @ ones)
            log_density -= 0.5 * (math.log(length / _USUAL_LENGTH) / _LENGTH_SPREAD) ** 2
            log_density -= 0.5 * (math.log(variance / _USUAL_VARIANCE) / _VARIANCE_SPREAD) ** 2
            if log_density > most_probable:
                most_probable = log_density
                self._length, self._variance, self._factor, self._mean = (
                    length * stretch,
                    variance * spread,
                    factor,
                    mean,
                )
                self._weights = solve_triangular(factor, rest, lower=True, trans=1)

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function at some points, (M,) each."""
        kernel = self._variance * np.exp(_squared_distances(points, self._points) / (-2 * self._length**2))
        explained = solve_triangular(self._factor, kernel.T, lower=True)
        deviation = np.sqrt(np.maximum(self._variance - (explained**2).sum(axis=0), 1e-12 * self._variance))
        return self._mean + kernel @ self._weights, deviation


class GaussianProcessSampler(optuna.samplers.BaseSampler):
    """Proposes the candidate of the largest expected improvement over the best that the model believes in.

    The first `STARTUP` candidates that nobody gave are spread evenly. A candidate under way counts as scored exactly as
    the model expects, so that several engines do not try the same. Jones et al. 1998; as the scores are noisy, what is
    improved on is the model's mean at the best candidate, not the best score.

    Args:
        space: name -> what the number may be; the same for every trial.
        error: user attribute of a trial that is its value's standard error.
        seed: of this proposal.
        sequence_seed: of the candidates before there is a model; the same for all trials of a study.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], error: str, *, seed: int, sequence_seed: int) -> None:
        self._space = {name: one for name, one in space.items() if not one.single()}
        self._axes = [_Axis(distribution) for distribution in self._space.values()]
        self._attribute, self._sequence_seed = error, sequence_seed
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All numbers."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Numbers for a trial, made from the trials before it."""
        before = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        drawn = sum("fixed_params" not in one.system_attrs for one in before)
        known = [one for one in before if self._space.keys() <= one.params.keys()]
        told = [one for one in known if one.state == TrialState.COMPLETE and all(map(math.isfinite, one.values))]
        if drawn < STARTUP or len(told) < 2:
            units = qmc.Sobol(len(self._axes), seed=self._sequence_seed).random(1 << drawn.bit_length())[drawn]
        else:
            running = [one for one in known if one.state == TrialState.RUNNING]
            units = self._most_promising(study, told, running)
        return {name: axis.value(unit) for (name, axis, unit) in zip(self._space, self._axes, units, strict=True)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Any value of a number that is not part of the space."""
        return _Axis(param_distribution).value(self._random.random())

    def _most_promising(
        self, study: optuna.Study, told: Sequence[FrozenTrial], running: Sequence[FrozenTrial]
    ) -> Floats:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        told = _relevant(told, sign)
        values = sign * np.array([one.values[0] for one in told])
        unknown = UNKNOWN_ERROR * float(np.std(values))
        errors = np.array([self._error(one, unknown) for one in told])
        units, model = self._model(told, running, values, errors)
        believed, _ = model.predict(self._points(units))
        best = float(believed.max())

        def improvement(candidates: Floats) -> Floats:
            return self._improvement(model, candidates, best)

        return self._highest(improvement, units[np.argsort(-believed)[:_KEPT]])

    def _model(
        self, told: Sequence[FrozenTrial], running: Sequence[FrozenTrial], values: Floats, errors: Floats
    ) -> tuple[Floats, GaussianProcess]:
        """A model of one objective, and where it was made, those under way included."""
        units = self._units(told)
        model = GaussianProcess(self._points(units), values, errors, len(self._axes))
        if running:
            pending = self._units(running)
            expected, _ = model.predict(self._points(pending))
            units, values = np.vstack([units, pending]), np.concatenate([values, expected])
            errors = np.concatenate([errors, np.zeros(len(running))])
            model = GaussianProcess(self._points(units), values, errors, len(self._axes))
        return units, model

    def _highest(self, gain: Callable[[Floats], Floats], begin: Floats) -> Floats:
        """Where a gain is greatest, of candidates drawn anywhere and ever nearer to the best of them."""
        candidates = np.vstack([self._random.random((_DRAWN, len(self._axes))), self._near(begin, _RADII[0])])
        for radius in _RADII:
            kept = candidates[np.argsort(-gain(candidates))[:_KEPT]]
            candidates = np.vstack([kept, self._near(kept, radius)])
        promising: Floats = candidates[np.argmax(gain(candidates))]
        return promising

    def _error(self, trial: FrozenTrial, unknown: float) -> float:
        return float(trial.user_attrs.get(self._attribute, unknown))

    def _improvement(self, model: GaussianProcess, units: Floats, best: float) -> Floats:
        mean, deviation = model.predict(self._points(units))
        above = (mean - best) / deviation
        improvement: Floats = deviation * (above * ndtr(above) + np.exp(-(above**2) / 2) / math.sqrt(2 * math.pi))
        return improvement

    def _near(self, units: Floats, radius: float) -> Floats:
        """Neighbours of candidates; now and then one whose choices are others."""
        near = np.repeat(units, _AROUND, axis=0)
        moved = np.clip(near + radius * self._random.standard_normal(near.shape), 0.0, 1.0)
        anew = self._random.random(near.shape)
        replaced = self._random.random(near.shape) < _RADII[0]
        is_choice = np.array([axis.num_choices > 0 for axis in self._axes])
        return np.where(is_choice, np.where(replaced, anew, near), moved)

    def _units(self, trials: Sequence[FrozenTrial]) -> Floats:
        return np.array(
            [
                [axis.unit(one.params[name]) for name, axis in zip(self._space, self._axes, strict=True)]
                for one in trials
            ]
        )

    def _points(self, units: Floats) -> Floats:
        return np.hstack([axis.point(units[:, index]) for index, axis in enumerate(self._axes)])


class _Axis:
    """One number of a space as a share of its range, 0 to 1, and where the model sees it."""

    def __init__(self, distribution: BaseDistribution) -> None:
        assert isinstance(distribution, FloatDistribution | IntDistribution | CategoricalDistribution)
        self._distribution = distribution
        self.num_choices = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0

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


def _relevant(told: Sequence[FrozenTrial], sign: float) -> list[FrozenTrial]:
    """The best and the latest trials, in their order."""
    best = sorted(told, key=lambda one: -sign * one.values[0])[:_BEST]
    kept = {one.number for one in (*best, *told[-_LATEST:])}
    return [one for one in told if one.number in kept]


def _squared_distances(left: Floats, right: Floats) -> Floats:
    squares: Floats = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
    np.maximum(squares, 0.0, out=squares)
    return squares
