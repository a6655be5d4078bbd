"""How long work tells whoever waits for it how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Is called with the fraction done, 0 to 1, and one line that says what is happening."""


_WORTH_SECONDS = 1.0


def silent(_fraction: float, _what: str) -> None:
    """Where nobody waits."""


class Meter:
    """Turns bytes into progress: how many of how many, how fast, and how long the rest will take.

    Args:
        progress: is told.
        what: what is happening.
        total: bytes that will be counted.
    """

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """Count bytes."""
        self._done += num_bytes

    def report(self) -> None:
        """Tell how far it is, of work that is not done in a moment."""
        done, seconds = self._done, time.monotonic() - self._began
        if seconds < _WORTH_SECONDS or not done:
            return
        rate, left = done / seconds, max(self._total - done, 0)
        text = f"{self._what}: {done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        text += f", {rate / 1e6:.0f} MB/s, {shown_seconds(left / rate)} left"
        self._progress(min(done / max(self._total, 1), 1.0), text)


def shown_seconds(seconds: float) -> str:
    """A time to wait, as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
