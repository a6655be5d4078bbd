"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from mergebench_ray.watching.tracker import PROJECT, TrackedRun


class WandbTracker:
    """A run of Weights & Biases.

    Args:
        run: theirs.
    """

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        self._run.log(dict(values), step=step)

    def end(self, values: Mapping[str, float]) -> None:
        """Put the best model's numbers into the summary."""
        self._run.summary.update({f"best/{name}": value for name, value in values.items()})
        self._run.finish(exit_code=0 if values else 1)


def begin(run: TrackedRun) -> WandbTracker:
    """Begin a run, or go on with it. `WANDB_MODE=offline` keeps everything in the run's folder."""
    # The terminal is the live view's. What the client would tell of the machine holds the command line, and passwords.
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    begun = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run.id,
        name=run.name,
        dir=run.folder,
        config=dict(run.config),
        resume="allow",
        settings=settings,
    )
    return WandbTracker(begun)
