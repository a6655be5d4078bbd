"""Proposals for several objectives: a Gaussian process for each, and what would widen their front most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from mergebench_ray.runs.front import non_dominated
from mergebench_ray.search.gaussian_process import UNKNOWN_ERROR, GaussianProcessSampler
from mergebench_ray.search.numbers import Floats

_DIRECTIONS, _DRAWS = 24, 24
_BELOW = 0.03  # of the front's range in each objective, where the volume begins
_WIDTH = 0.5  # of all candidates' range, which a front may be expected to have
_BEGUN_AT = 10  # members of the front, beside candidates drawn anywhere
_LATEST, _MEMBERS = 100, 60  # candidates that models are made of: the latest, and those of the front before them


class FrontSampler(GaussianProcessSampler):
    """Proposes the candidate from which most volume is expected, beyond what the candidates so far exceed.

    The volume is seen along some directions, drawn anew for each proposal: how far one gets from the front's worst
    corner along a direction before no candidate exceeds the point in every objective. To the power of the number of
    objectives, its mean over all directions is the volume. The models' means at the candidates so far count as their
    values, since scores are noisy. Golovin and Zhang 2020, Random hypervolume scalarizations.

    Args: as `GaussianProcessSampler`; the attribute `error` holds one for each objective.
    """

    def _most_promising(
        self,
        study: optuna.Study,
        told: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        tried: Sequence[FrozenTrial],
    ) -> tuple[str, Floats]:
        signs = np.array([1.0 if one == StudyDirection.MAXIMIZE else -1.0 for one in study.directions])
        values = signs * np.array([one.values for one in told])
        kept = _relevant(values)
        told, values = [told[place] for place in kept], values[kept]
        errors = self._all_errors(told, values)
        models = [self._model(told, running, *columns) for columns in zip(values.T, errors.T, strict=True)]
        seen = [*told, *running]
        believed = np.stack([self._believed(model, seen) for model in models], axis=1)
        volume = _Volume(believed, self._random)

        def gained(points: Floats, kind: int) -> Floats:
            predicted = [model.predict(points, kind) for model in models]
            means, deviations = (np.stack(columns, axis=1) for columns in zip(*predicted))
            return volume.expected_gain(means, deviations)

        front = np.flatnonzero(non_dominated(believed))
        return self._highest(gained, tried, [seen[place] for place in self._random.permutation(front)[:_BEGUN_AT]])

    def _all_errors(self, told: Sequence[FrozenTrial], values: Floats) -> Floats:
        unknown = UNKNOWN_ERROR * values.std(axis=0)
        given = [one.user_attrs.get(self._attribute) or [None] * len(unknown) for one in told]
        return np.array([[u if e is None else e for e, u in zip(row, unknown, strict=True)] for row in given])


class _Volume:
    """What candidates exceed in every objective, along some directions from the worst corner of their front.

    Args:
        values: of the candidates so far, (candidates, objectives), more being better.
        random: draws directions, and what candidates may come to.
    """

    def __init__(self, values: Floats, random: np.random.Generator) -> None:
        front = values[non_dominated(values)]
        own, everyones = np.ptp(front, axis=0), _WIDTH * np.ptp(values, axis=0)
        self._range = np.maximum(np.maximum(own, everyones), 1e-12)
        # Below a narrow front it begins as far as a wide one would reach: else nothing that widens it counts.
        self._corner = front.min(axis=0) - np.maximum(_BELOW * own, everyones - own)
        directions = np.abs(random.standard_normal((_DIRECTIONS, values.shape[1])))
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._draws = random.standard_normal((_DRAWS, values.shape[1]))
        self._reached = self._along(front).max(axis=0)

    def _along(self, values: Floats) -> Floats:
        """How far points reach, (points, objectives) to (points, directions)."""
        scaled = np.maximum(values - self._corner, 0.0) / self._range
        found = np.full((len(values), _DIRECTIONS), np.inf)
        for reached, shares in zip(scaled.T, self._directions.T, strict=True):
            np.minimum(found, reached[:, None] / shares, out=found)
        further: Floats = found ** values.shape[1]
        return further

    def expected_gain(self, means: Floats, deviations: Floats) -> Floats:
        """How much further candidates would reach, (candidates, objectives) each to (candidates,)."""
        total = np.zeros(len(means))
        for draw in self._draws:
            reached = self._along(means + deviations * draw)
            total += np.maximum(reached - self._reached, 0.0).mean(axis=1)
        return total / len(self._draws)


def _relevant(values: Floats) -> list[int]:
    """Places of the latest candidates, and of the front's latest members before them."""
    latest = range(max(0, len(values) - _LATEST), len(values))
    before = [place for place in np.flatnonzero(non_dominated(values)).tolist() if place not in latest]
    return [*before[-_MEMBERS:], *latest]
