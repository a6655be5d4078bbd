"""What came of items that were asked, and what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergebench_ray.scores import ItemRow


@dataclass(frozen=True)
class GradedItem:
    """What came of an item.

    Attributes:
        value: of the task's metric, as its aggregation takes it.
        row: what is kept.
        parsed: whether its judge's answer parsed; None without a judge.
        answers: by request, by repeat: a text, or a likelihood; none where it is from an earlier run.
    """

    value: Any
    row: ItemRow
    parsed: bool | None
    answers: Sequence[Sequence[Any]] = ()


GradedItems = Mapping[int, GradedItem]
"""Place of an item in its split, counted through all tasks -> what came of it."""


@dataclass(frozen=True)
class Spent:
    """What asking and grading took.

    Attributes:
        seconds: wall time.
        engine_seconds: part of it in which the engine computed.
        tokens: tokens read and written by the engine, those of answers that were not finished included.
        truncated: prompts that were cut from the left to fit the context.
        judge_seconds: in which judges computed.
        judge_tokens: tokens read and written by judges.
    """

    seconds: float = 0.0
    engine_seconds: float = 0.0
    tokens: int = 0
    truncated: int = 0
    judge_seconds: float = 0.0
    judge_tokens: int = 0

    def then(self, other: Spent) -> Spent:
        """Together with what was spent after it."""
        return self._and(other, self.seconds + other.seconds)

    def beside(self, other: Spent) -> Spent:
        """Together with what another engine spent at the same time."""
        return self._and(other, max(self.seconds, other.seconds))

    def _and(self, other: Spent, seconds: float) -> Spent:
        return Spent(
            seconds=seconds,
            engine_seconds=self.engine_seconds + other.engine_seconds,
            tokens=self.tokens + other.tokens,
            truncated=self.truncated + other.truncated,
            judge_seconds=self.judge_seconds + other.judge_seconds,
            judge_tokens=self.judge_tokens + other.judge_tokens,
        )


@dataclass(frozen=True)
class GradedShare:
    """What one engine found of its share of the items.

    Attributes:
        items: what came of them.
        version: weight version of the engine.
        spent: what it took.
    """

    items: GradedItems
    version: str
    spent: Spent
