"""Trackio: a database of this user, or a Space of the hub."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout

import trackio
from trackio.run import Run

from mergebench_ray.watching.tracker import PROJECT, TrackedRun


class TrackioTracker:
    """A run of Trackio.

    Args:
        run: theirs.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        self._run.log(dict(values), step=step)

    def end(self, values: Mapping[str, float]) -> None:
        """Log the best model's numbers, and wait until all is written."""
        with redirect_stdout(io.StringIO()):
            if values:
                self._run.log({f"best/{name}": value for name, value in values.items()})
            self._run.finish()  # type: ignore[no-untyped-call]


def begin(run: TrackedRun) -> TrackioTracker:
    """Begin a run, or go on with it; `TRACKIO_PROJECT` and `TRACKIO_SPACE_ID` say where."""
    with redirect_stdout(io.StringIO()):  # the terminal is the live view's
        begun = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.id[:8]}",
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return TrackioTracker(begun)
