"""A tracker: a service that a run is followed with. `trackers/` has a file for each."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergebench_ray.config.tracking import TrackerName
from mergebench_ray.errors import InputError

PROJECT = "mergebench_ray"
"""Where runs are put, unless a client's own environment variable names another place."""
_NEEDS: dict[TrackerName, tuple[str, str]] = {
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
}
"""Tracker -> what its client is imported as, and the package that brings it."""
_LOGIN = re.compile(r"(?<=://)[^\s'\"]*@")


@dataclass(frozen=True)
class TrackedRun:
    """A run, as services know it.

    Attributes:
        name: what people call it.
        id: 32 hexadecimal digits; whoever goes on with the run finds it again by this.
        folder: the run's.
        config: the sweep as it was written.
    """

    name: str
    id: str
    folder: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """What follows one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step; what was logged before of the same step may be logged again."""

    def end(self, values: Mapping[str, float]) -> None:
        """The run has found its best model, of which these are the numbers; or none, where it has stopped before."""


def check_tracker(name: TrackerName) -> None:
    """Find out whether a tracker's client is there.

    Raises:
        InputError: how to install it.
    """
    module, package = _NEEDS[name]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"tracking: {name} needs its client: pip install {package}, or leave tracking out")


def begin_tracking(name: TrackerName, run: TrackedRun) -> Tracker:
    """Have a service follow a run, from its start or where it was left.

    Raises:
        InputError: its client cannot begin: nobody is logged in, or nobody answers.
    """
    check_tracker(name)
    try:
        tracker: Tracker = importlib.import_module(f"mergebench_ray.watching.trackers.{name}").begin(run)
    except Exception as error:
        raise InputError(
            f"tracking: {name} cannot begin ({reason_of(error):.300}); see its documentation for how to log in or to "
            "work offline, or leave tracking out"
        ) from None  # whose text may hold a password
    return tracker


def reason_of(error: Exception) -> str:
    """Why a client failed, in one line."""
    return without_logins(" ".join(str(error).split())) or type(error).__name__


def without_logins(text: str) -> str:
    """A text with three stars for whatever addresses in it hold to log in with: clients tell whole addresses."""
    return _LOGIN.sub("***@", text)
