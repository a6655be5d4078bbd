"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from mergebench_ray.watching.tracker import TrackedRun

FOLDER = "tensorboard"
"""Where the files are, in the run's folder."""


class TensorboardTracker:
    """Event files of a run.

    Args:
        run: the run.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._writer = SummaryWriter(run.folder / FOLDER)
        text = json.dumps(run.config, indent=4)
        self._writer.add_text("sweep", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step, and have them on disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, values: Mapping[str, float]) -> None:
        """Add the best model's numbers."""
        self.log(0, {f"best/{name}": value for name, value in values.items()})
        self._writer.close()


def begin(run: TrackedRun) -> TensorboardTracker:
    """Begin event files; files of earlier sittings stay beside them."""
    return TensorboardTracker(run)
