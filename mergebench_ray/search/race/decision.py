"""What a race decides for a candidate, and what the decision was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Action = Literal["go on", "pause", "stop", "done"]


@dataclass(frozen=True)
class Decision:
    """One candidate's next step.

    Attributes:
        candidate: its number.
        answered: items of the order that it has answered.
        action: ``go on`` (report again at `until` items), ``pause`` (keep what was answered; it may be raised later),
            ``stop`` (it is out), ``done`` (all items are answered).
        until: items that it goes on to; equal to `answered` unless it goes on.
        why: what the decision was made from, plain JSON types.
    """

    candidate: int
    answered: int
    action: Action
    until: int
    why: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As a line of ``decisions.jsonl``."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """An objective, as far as it is known.

    Attributes:
        value: of all items where they are answered, else the best guess of that.
        standard_error: of the guess, against the objective of all items; 0 where they are answered.
        answered: items that it was made from.
        estimated: whether items are missing, so that it is no score.
    """

    value: float
    standard_error: float
    answered: int
    estimated: bool
