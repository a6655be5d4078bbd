"""Proposals for spaces of a few numbers: a Gaussian process that knows how exactly each candidate was scored."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import cholesky, solve_triangular
from scipy.special import erfcx, ndtr
from scipy.stats import qmc

from mergebench_ray.search.numbers import Axis, Floats, Numbers
from mergebench_ray.search.space import METHOD

Integers = npt.NDArray[np.int64]

_TAKEN_FROM = "taken_from"
"""User attribute of a trial that another run has scored."""
STARTUP = 8  # candidates of one method, spread evenly before there is a model
STARTUP_OF_EACH = 4  # of several

# Length scales, as shares of a range, and variances, as multiples of what the errors do not explain of the scores' own.
# The likelihood chooses with what a few scores of a merge usually look like in mind: smooth over half a range. A few
# dozen noisy scores say too little for more than two such numbers.
_LENGTHS, _USUAL_LENGTH, _LENGTH_SPREAD = (0.3, 0.4, 0.55, 0.75, 1.0, 1.4), 0.6, 0.4
_VARIANCES, _USUAL_VARIANCE, _VARIANCE_SPREAD = (1.0, 2.0, 4.0, 8.0), 2.5, 0.7
_USUAL_NUMBERS = 5  # whose length scale is the usual one; in more dimensions all distances are larger
_OFFSET = 1.0  # variance between the means of several methods, as a multiple of that within one
UNKNOWN_ERROR = 0.3  # of a candidate's score where none is known, as a share of the scores' spread
_BEST, _LATEST = 100, 200  # candidates that a model is made of; of more it would take longer than it is worth
_FAR = 1e3  # deviations
_BESIDE, _MOST_BESIDE = 0.05, 3  # in every number, as a share of its range; candidates that are there already
_DRAWN, _RADII, _KEPT, _AROUND = 1000, (0.1, 0.05, 0.02, 0.01), 10, 30


class GaussianProcess:
    """A smooth function through noisy values, with its own uncertainty; of each kind of points another one.

    Squared exponential kernel, constant mean, known noise; length scale and variance are the most probable of a few.
    They are the same for all kinds, whose means lie around a common one.

    Args:
        points: where, (N, D), in ranges of about 1.
        values: what was seen there, (N,).
        errors: standard error of each value, (N,).
        kinds: of each point, (N,).
    """

    def __init__(self, points: Floats, values: Floats, errors: Floats, kinds: Integers) -> None:
        self._points, self._kinds = points, kinds
        self._offset = _OFFSET if len(set(kinds.tolist())) > 1 else 0.0
        distances, alike = _squared_distances(points, points), kinds[:, None] == kinds
        spread = max(float(np.var(values) - np.mean(errors**2)), 0.1 * float(np.var(values)), 1e-12)
        most_probable = -math.inf
        for length, variance in itertools.product(_LENGTHS, _VARIANCES):
            kernel = alike * variance * spread * (np.exp(distances / (-2 * length**2)) + self._offset)
            factor = cholesky(kernel + np.diag(errors**2 + 1e-6 * variance * spread), lower=True)
            ones, seen = (solve_triangular(factor, side, lower=True) for side in (np.ones(len(values)), values))
            mean = float(ones @ seen / (ones @ ones))
            rest = seen - mean * ones
            log_density = -0.5 * float(rest @ rest) - float(np.log(np.diag(factor)).sum()) - 0.5 * math.log(ones @ ones)
            log_density -= 0.5 * (math.log(length / _USUAL_LENGTH) / _LENGTH_SPREAD) ** 2
            log_density -= 0.5 * (math.log(variance / _USUAL_VARIANCE) / _VARIANCE_SPREAD) ** 2
            if log_density > most_probable:
                most_probable = log_density
                self._length, self._variance, self._factor, self._mean = length, variance * spread, factor, mean
                self._weights = solve_triangular(factor, rest, lower=True, trans=1)

    def predict(self, points: Floats, kind: int) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function at some points of a kind, (M,) each."""
        distances = _squared_distances(points, self._points)
        kernel = (self._kinds == kind) * self._variance * (np.exp(distances / (-2 * self._length**2)) + self._offset)
        explained = solve_triangular(self._factor, kernel.T, lower=True)
        prior = self._variance * (1 + self._offset)
        deviation = np.sqrt(np.maximum(prior - (explained**2).sum(axis=0), 1e-12 * prior))
        return self._mean + kernel @ self._weights, deviation


class GaussianProcessSampler(optuna.samplers.BaseSampler):
    """Proposes the candidate of the largest expected improvement over the best that the model believes in.

    The first candidates that nobody gave are spread evenly, `STARTUP` of one method or `STARTUP_OF_EACH` of several.
    After those, whichever method promises most gets the next one. A candidate under way counts as scored exactly as
    the model expects, so that several engines do not try the same. Jones et al. 1998; as the scores are noisy, what is
    improved on is the model's mean at the best candidate, not the best score.

    Args:
        methods: method -> name -> what the number may be; the same for every trial. Of several, a trial's `METHOD` says
            which numbers it has.
        error: user attribute of a trial that is its value's standard error.
        seed: of this proposal.
        sequence_seed: of the candidates before there is a model; the same for all trials of a study.
    """

    def __init__(
        self, methods: Mapping[str, Mapping[str, BaseDistribution]], error: str, *, seed: int, sequence_seed: int
    ) -> None:
        self._methods = {name: Numbers(space) for name, space in methods.items()}
        self._width = max(numbers.width for numbers in self._methods.values())
        self._attribute, self._sequence_seed = error, sequence_seed
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All numbers, and the method where there are several."""
        space: dict[str, BaseDistribution] = {}
        for numbers in self._methods.values():
            space |= numbers.space
        return {METHOD: CategoricalDistribution([*self._methods]), **space} if len(self._methods) > 1 else space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Numbers for a trial, made from the trials before it."""
        for method, numbers in self._methods.items():  # whose ranges may be others than where they were inferred
            self._methods[method] = Numbers({name: search_space[name] for name in numbers.space})
        before = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        told = [one for one in self._of_the_space(before) if one.state == TrialState.COMPLETE]
        told = [one for one in told if all(map(math.isfinite, one.values))]
        if (first := self._first(before, too_few=len(told) < 2)) is not None:
            method, units = first
        else:
            running = [one for one in self._of_the_space(before) if one.state == TrialState.RUNNING]
            method, units = self._most_promising(study, told, running, self._of_the_space(before))
        chosen = {METHOD: method} if len(self._methods) > 1 else {}
        return chosen | self._methods[method].values(units)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Any value of a number that is not part of the space."""
        return Axis(param_distribution).value(self._random.random())

    def _of_the_space(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those that have a method's numbers."""
        methods = [(one, self._methods.get(self._method(one))) for one in trials]
        return [one for one, numbers in methods if numbers is not None and numbers.space.keys() <= one.params.keys()]

    def _method(self, trial: FrozenTrial) -> str:
        return str(trial.params.get(METHOD)) if len(self._methods) > 1 else next(iter(self._methods))

    def _first(self, before: Sequence[FrozenTrial], *, too_few: bool) -> tuple[str, Floats] | None:
        """The next of the candidates that are spread evenly, a method after the other; None after the last."""
        drawn = Counter(self._method(one) for one in before if "fixed_params" not in one.system_attrs)
        wanted = STARTUP if len(self._methods) == 1 else STARTUP_OF_EACH
        methods = [
            method
            for method, numbers in self._methods.items()
            if too_few or drawn[method] < min(wanted, numbers.num_candidates)
        ]
        if not methods:
            return None
        method = min(methods, key=lambda one: drawn[one])
        count, numbers = drawn[method], self._methods[method]
        if not len(numbers):
            return method, np.zeros(0)
        points = qmc.Sobol(len(numbers), seed=self._sequence_seed).random(1 << max(count, wanted).bit_length())
        known = [one for one in self._of_the_space(before) if self._method(one) == method]
        if not any(_TAKEN_FROM in one.user_attrs for one in known):
            return method, points[count]
        # Others were not spread by this sequence: of its points the one that is farthest from all of them.
        apart = _squared_distances(numbers.points(points), numbers.points(numbers.units(known))).min(axis=1)
        return method, points[int(apart.argmax())]

    def _most_promising(
        self,
        study: optuna.Study,
        told: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        tried: Sequence[FrozenTrial],
    ) -> tuple[str, Floats]:
        """A method, and the shares of its candidate."""
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        told = _relevant(told, sign)
        values = sign * np.array([one.values[0] for one in told])
        unknown = UNKNOWN_ERROR * float(np.std(values))
        errors = np.array([float(one.user_attrs.get(self._attribute, unknown)) for one in told])
        model = self._model(told, running, values, errors)
        seen = [*told, *running]
        believed = self._believed(model, seen)
        best = float(believed.max())

        def improvement(points: Floats, kind: int) -> Floats:
            return log_expected_improvement(*model.predict(points, kind), best)

        return self._highest(improvement, tried, [seen[place] for place in np.argsort(-believed)])

    def _model(
        self, told: Sequence[FrozenTrial], running: Sequence[FrozenTrial], values: Floats, errors: Floats
    ) -> GaussianProcess:
        """A model of one objective, in which what is under way counts, too."""
        model = GaussianProcess(self._points(told), values, errors, self._kinds(told))
        if not running:
            return model
        seen = [*told, *running]
        values = np.concatenate([values, self._believed(model, running)])
        errors = np.concatenate([errors, np.zeros(len(running))])
        return GaussianProcess(self._points(seen), values, errors, self._kinds(seen))

    def _highest(
        self, gain: Callable[[Floats, int], Floats], tried: Sequence[FrozenTrial], begin: Sequence[FrozenTrial]
    ) -> tuple[str, Floats]:
        """Where a gain is greatest, of each method's candidates drawn anywhere and ever nearer to the best of them.

        Args:
            gain: of points of a kind, (N,).
            tried: all candidates before, also those that came to nothing or that the model does without.
            begin: those where to look first.
        """
        found: dict[str, tuple[float, Floats]] = {}
        for kind, (method, numbers) in enumerate(self._methods.items()):
            known, near = (
                numbers.units([one for one in some if self._method(one) == method]) for some in (tried, begin)
            )
            search = _MethodSearch(kind, numbers, self._width, gain, known)
            found[method] = search.highest(near[:_KEPT], self._random)
        method = max(found, key=lambda one: found[one][0])
        return method, found[method][1]

    def _believed(self, model: GaussianProcess, trials: Sequence[FrozenTrial]) -> Floats:
        """What the model thinks of trials, (N,)."""
        believed = np.zeros(len(trials))
        kinds, points = self._kinds(trials), self._points(trials)
        for kind in set(kinds.tolist()):
            believed[kinds == kind] = model.predict(points[kinds == kind], kind)[0]
        return believed

    def _kinds(self, trials: Sequence[FrozenTrial]) -> Integers:
        places = {method: kind for kind, method in enumerate(self._methods)}
        return np.array([places[self._method(one)] for one in trials], dtype=np.int64)

    def _points(self, trials: Sequence[FrozenTrial]) -> Floats:
        points = np.zeros((len(trials), self._width))
        for place, one in enumerate(trials):
            numbers = self._methods[self._method(one)]
            points[place] = _points(numbers, numbers.units([one]), self._width)
        return points


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Logarithm of the expected improvement over a value, also where that is far too small for a number, (N,).

    Where one method leads by many deviations it is what still tells the others' candidates apart. Ament et al. 2023,
    2310.20708, equation 9.

    Args:
        mean: of the function at some points, (N,).
        deviation: its standard deviation there, (N,), above 0.
        best: what is improved on.
    """
    above = (mean - best) / deviation
    density = -(above**2) / 2 - math.log(2 * math.pi) / 2
    close = np.maximum(above, -1.0)
    near = np.log(close * ndtr(close) + np.exp(-(close**2) / 2) / math.sqrt(2 * math.pi))
    below = np.maximum(-above, 1.0)
    # What is left of 1 loses all digits where it is 1 / below², nearly.
    left = np.where(below < _FAR, 1 - below * math.sqrt(math.pi / 2) * erfcx(below / math.sqrt(2)), below**-2.0)
    logarithm: Floats = np.log(deviation) + np.where(above > -1, near, density + np.log(left))
    return logarithm


class _MethodSearch:
    """Looks for the candidate of a method of which a gain is greatest.

    Args:
        kind: of the method's points.
        numbers: of the method.
        width: of the model's points.
        gain: of points of a kind.
        tried: shares of candidates that are not proposed again, nor more than a few beside them: their answers to the
            same items are nearly the same, so that another neighbour's score is no new draw.
    """

    def __init__(
        self, kind: int, numbers: Numbers, width: int, gain: Callable[[Floats, int], Floats], tried: Floats
    ) -> None:
        self._kind, self._numbers, self._width, self._gain = kind, numbers, width, gain
        self._tried = {self._key(one) for one in tried}
        self._near_to = (
            numbers.points(np.unique(tried, axis=0))
            if len(tried) and not math.isfinite(numbers.num_candidates)
            else None
        )

    def highest(self, begin: Floats, random: np.random.Generator) -> tuple[float, Floats]:
        """The greatest gain, and the shares of its candidate.

        Args:
            begin: shares of candidates where to look first.
            random: draws where to look.
        """
        candidates = np.vstack([random.random((_DRAWN, len(self._numbers))), self._near(begin, _RADII[0], random)])
        if len(self._tried) == self._numbers.num_candidates:
            return -math.inf, candidates[0]
        for radius in _RADII:
            kept = candidates[np.argsort(-self._gains(candidates))[:_KEPT]]
            candidates = np.vstack([kept, self._near(kept, radius, random)])
        gains = self._gains(candidates)
        place = int(np.argmax(gains))
        return float(gains[place]), candidates[place]

    def _gains(self, units: Floats) -> Floats:
        gains = self._gain(_points(self._numbers, units, self._width), self._kind)
        if self._tried:
            gains[[self._key(one) in self._tried for one in units]] = -math.inf
        if self._near_to is not None:
            beside = np.ones((len(units), len(self._near_to)), dtype=bool)
            for ours, theirs in zip(self._numbers.points(units).T, self._near_to.T, strict=True):
                beside &= np.abs(ours[:, None] - theirs) < _BESIDE
            gains[beside.sum(axis=1) >= _MOST_BESIDE] = -math.inf
        return gains

    def _key(self, units: Floats) -> tuple[Any, ...]:
        return tuple(self._numbers.values(units).values())

    def _near(self, units: Floats, radius: float, random: np.random.Generator) -> Floats:
        """Neighbours of candidates; now and then one whose choices are others."""
        near = np.repeat(units, _AROUND, axis=0)
        moved = np.clip(near + radius * random.standard_normal(near.shape), 0.0, 1.0)
        anew = random.random(near.shape)
        replaced = random.random(near.shape) < _RADII[0]
        return np.where(self._numbers.is_choice, np.where(replaced, anew, near), moved)


def _points(numbers: Numbers, units: Floats, width: int) -> Floats:
    """Where the model sees a method's candidates, (N, width); in more dimensions all distances are larger."""
    points = numbers.points(units) / math.sqrt(max(len(numbers), 1) / _USUAL_NUMBERS)
    return np.pad(points, ((0, 0), (0, width - points.shape[1])))


def _relevant(told: Sequence[FrozenTrial], sign: float) -> list[FrozenTrial]:
    """The best and the latest trials, in their order."""
    best = sorted(told, key=lambda one: -sign * one.values[0])[:_BEST]
    kept = {one.number for one in (*best, *told[-_LATEST:])}
    return [one for one in told if one.number in kept]


def _squared_distances(left: Floats, right: Floats) -> Floats:
    squares: Floats = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
    np.maximum(squares, 0.0, out=squares)
    return squares
