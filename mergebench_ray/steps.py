"""What a process is at, and how long that may take: told by its signs of life, so that one that hangs is noticed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

STEP_SECONDS = 300.0
"""In one step, after which an actor hangs, unless it says what its steps may take."""
_LEAST_SECONDS = 60.0
"""That any step may take: machines are busy, and stand still for a while."""
SLOWEST_FETCH = 5e6
"""Bytes in a second that come from object storage, at the least."""

Step = tuple[float, float]
"""For how many seconds an actor has been at one step, and how many that may take; 0 for what any step may."""


class Steps:
    """What an actor is at, for its signs of life; may be used by several threads at once."""

    def __init__(self) -> None:
        self._names = itertools.count()
        self._under_way: dict[int, tuple[float, float]] = {}

    @contextmanager
    def step(self, most: float = 0.0) -> Iterator[None]:
        """A step for the length of the block.

        Args:
            most: seconds that it takes at most on a machine that has nothing else to do; a minute more is given.
        """
        name = next(self._names)
        self._under_way[name] = (time.monotonic(), most and _LEAST_SECONDS + most)
        try:
            yield
        finally:
            del self._under_way[name]

    def present(self) -> Step:
        """That of its steps which is nearest to its end, or past it; (0, 0) between two."""
        now = time.monotonic()
        steps = [(now - began, most) for began, most in self._under_way.copy().values()]
        return max(steps, key=lambda one: one[0] - (one[1] or STEP_SECONDS), default=(0.0, 0.0))
