"""What a caller of `tune` has called while the search goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mergebench_ray.errors import InputError, one_line
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.race.decision import Decision

_NAMES = ("on_trial", "on_decision")
_log = logging.getLogger(__name__)


class Callback:
    """Is told what a search does: a class of one's own has one of these methods, or both.

    They are called by the thread that drives the search, so the next candidate waits for them. What an Exception ends
    is that call alone: a line names it, its traceback is in the run's log, and the search goes on. KeyboardInterrupt
    ends the search as Ctrl-C does.
    """

    def on_trial(self, trial: Trial) -> None:
        """A candidate came to its end: it was scored, the race stopped it, or it failed; its row is on disk."""

    def on_decision(self, decision: Decision) -> None:
        """The race has decided what a candidate does next, which is on disk; a search without a race has none."""


class Callbacks:
    """Calls them.

    Args:
        callbacks: in their order.
        note: called with a line the first time that one fails.
    """

    def __init__(self, callbacks: Sequence[Callback], note: Callable[[str], None]) -> None:
        self._callbacks, self._note = callbacks, note
        self._failed: set[int] = set()

    def on_trial(self, trial: Trial) -> None:
        """Tell of a candidate's end."""
        self._tell("on_trial", trial)

    def on_decision(self, decision: Decision) -> None:
        """Tell of a decision of the race."""
        self._tell("on_decision", decision)

    def _tell(self, name: str, what: Trial | Decision) -> None:
        for place, callback in enumerate(self._callbacks):
            try:
                if (called := getattr(callback, name, None)) is not None:
                    called(what)
            except Exception as error:  # other people's code
                where = f"callback {type(callback).__name__}.{name}"
                _log.warning("%s failed", where, exc_info=error)
                if place not in self._failed:
                    self._failed.add(place)
                    self._note(f"{where} failed ({one_line(error)}); the search goes on, and it is called again")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what cannot be called.

    Raises:
        InputError: saying which.
    """
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks: must be a list of objects, not of type {type(callbacks).__name__}")
    for place, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise InputError(f"callbacks[{place}]: {callback.__name__} is a class; give an object of it")
        if not any(_has_own(callback, name) for name in _NAMES):
            kind = type(callback).__name__
            raise InputError(
                f"callbacks[{place}]: a {kind} has neither {' nor '.join(_NAMES)} of its own; write one of them"
            )


def _has_own(callback: object, name: str) -> bool:
    """Whether it has a method that does something; those of `Callback` itself do nothing."""
    method = getattr(callback, name, None)
    return callable(method) and getattr(method, "__func__", None) is not getattr(Callback, name)
