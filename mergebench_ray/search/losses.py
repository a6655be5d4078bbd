"""What was lost while a run was worked on, and which models were at work then: kept, so that a resume counts on."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mergebench_ray.runs.json_lines import JsonLines

_log = logging.getLogger(__name__)
STRIKES = 3
"""So many times a model may be at work when an engine is lost; then it is given up."""
NODE_STRIKE = 0.5
"""What the loss of an engine counts that went with its whole node, for which there are other reasons, too."""


class LostError(Exception):
    """Something was lost under a step that may be taken again.

    Args:
        reason: why, in a few words.
        strike: what it counts where the step itself may be to blame.
    """

    def __init__(self, reason: str, strike: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.strike = reason, strike


@dataclass(frozen=True)
class Loss:
    """Of an engine.

    Attributes:
        reason: why.
        seconds: for which it was at work for whoever had it; None where that was done.
    """

    reason: str
    seconds: float | None

    def made_good(self, index: int, seconds: float) -> str:
        """A line that says so, once another one is up."""
        repeated = "" if self.seconds is None else f", and the {self.seconds:.0f} s that it was at work are repeated"
        lost = "ended" if self.seconds is None else "was lost"
        return f"engine {index} {lost} ({self.reason}): another one took its place after {seconds:.0f} s{repeated}"


class Losses:
    """Counts the engines that were lost under each model; may be used by several threads.

    Args:
        file: of the run's folder.
        note: called with a line for people.
    """

    def __init__(self, file: Path, note: Callable[[str], None]) -> None:
        self._file, self._note = JsonLines(file), note
        self._lock = threading.Lock()
        self._strikes = defaultdict[str, list[tuple[float, str]]](list)
        for line in self._file.read():
            if line.get("strike"):
                self._strikes[line["digest"]].append((float(line["strike"]), str(line["reason"])))

    def strike(self, digest: str, reason: str, strike: float = 1.0) -> None:
        """An engine was lost while this model was loaded or asked; it is on disk when this returns.

        Args:
            digest: the model's.
            reason: why it was lost.
            strike: what it counts.
        """
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._file.append([{"lost": "engine", "digest": digest, "reason": reason, "strike": strike, "at": now}])
            self._strikes[digest].append((strike, reason))

    def forgive(self, digest: str) -> None:
        """Count for a model from now on alone, in this sitting."""
        with self._lock:
            self._strikes.pop(digest, None)

    def given_up(self, digest: str) -> str | None:
        """Why a model is asked nothing more, in a few words; None as long as it may be."""
        with self._lock:
            strikes = self._strikes.get(digest, [])
            if sum(strike for strike, _ in strikes) < STRIKES:
                return None
            return f"{len(strikes)} engines were lost while it was scored, the last one since {strikes[-1][1]}"

    def say(self, line: str) -> None:
        """Tell people, and the run's log, what was lost and what that took."""
        _log.warning(line)
        self._note(line)
