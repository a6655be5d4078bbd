"""A smooth function through the candidates of a finished run, as which other candidates are scored in no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mergebench_ray.config import Range

Floats = npt.NDArray[np.float64]


class FittedFunction:
    """Kernel ridge regression; the error of leaving one out chooses length scale and penalty.

    Args:
        points: where, (N, D).
        values: what was seen there, (N,).

    Attributes:
        explained: share of the variance that is predicted.
    """

    def __init__(self, points: Floats, values: Floats) -> None:
        self._points, self._mean = points, float(values.mean())
        least = np.inf
        for length in (0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3):
            for penalty in (0.01, 0.03, 0.1, 0.3, 1.0):
                inverse = np.linalg.inv(_kernel(points, points, length) + penalty * np.eye(len(points)))
                weights = inverse @ (values - self._mean)
                error = float(np.mean((weights / np.diag(inverse)) ** 2))
                if error < least:
                    least, self._length, self._weights = error, length, weights
        self.explained = 1 - least / float(values.var())

    def __call__(self, points: Floats) -> Floats:
        """Its values at some points, (M,)."""
        values: Floats = self._mean + _kernel(points, self._points, self._length) @ self._weights
        return values


def shares_of_ranges(
    parameters: Mapping[str, Any], ranges: Mapping[str, Range], specialists: Sequence[str]
) -> list[float]:
    """A candidate's numbers as shares of their ranges."""
    point = []
    for key, one in ranges.items():
        value = parameters[key]
        numbers = [value[name] for name in specialists] if isinstance(value, Mapping) else [value]
        point += [(float(number) - one.low) / (one.high - one.low) for number in numbers]
    return point


def _kernel(left: Floats, right: Floats, length: float) -> Floats:
    apart: Floats = ((left[:, None] - right[None]) ** 2).sum(axis=2)
    return np.exp(apart / (-2 * length**2))
