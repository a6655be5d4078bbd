"""One candidate's answers to a share of the items, asked of one engine and graded as they come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from mergebench_ray.engines import VLLMEngine
from mergebench_ray.evaluation.asked import Asked
from mergebench_ray.evaluation.graded import GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.look_grader import LookGrader

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Prompt


_DECISION_SECONDS = 0.5
"""How long the engine waits for a stop after the first looks, which is when most candidates are stopped."""


class Alone(NamedTuple):
    """What is complete before anything else begins.

    Attributes:
        prompts: how many of the first prompts.
        looks: how many of the first looks.
    """

    prompts: int
    looks: int


class ShareScoring:
    """The engine's present weights, asked a share of the items.

    Args:
        engine: answers with whatever weights it holds now.
        asked: requests, by their index in the batch.
        prompts: of that batch, in the order in which they are asked.
        in_flight: sequences that the engine computes at a time; None leaves that to it.
        grader: knows the looks.
        alone: what is complete before anything else begins.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        asked: Sequence[Asked],
        prompts: Sequence[Prompt],
        in_flight: int | None,
        grader: LookGrader,
        alone: Alone | None = None,
    ) -> None:
        self._engine, self._asked, self._prompts, self._in_flight = engine, asked, prompts, in_flight
        self._grader, self._alone = grader, alone or Alone(0, 0)
        self._version = engine.weight_version
        self._started, self._busy, self._tokens = time.perf_counter(), engine.busy_seconds, engine.tokens
        self._ended = self._started

    def looks(self, stopped: Callable[[], bool] = lambda: False) -> Generator[GradedItems, None, None]:
        """Ask and grade; what each look adds, as soon as it is complete.

        All in the thread that calls, which grades between two steps of the engine. Whoever closes the iterator, or says
        that it is stopped, ends it within a step: the rest is aborted.

        Args:
            stopped: asked after each step.
        """
        try:
            alone = self._alone.prompts if self._alone.prompts < len(self._prompts) else 0
            to_come = sum(len(one.requests) for one in self._prompts[:alone])
            stream = self._engine.stream(self._prompts, self._in_flight, alone)
            with self._grader as grader, closing(stream) as steps:
                self._engine.forget_prefixes()
                for answered in steps:
                    for index, answer in answered:
                        grader.take(self._asked[index], answer)
                    to_come -= len(answered)
                    if stopped():
                        return
                    yield from grader.graded()
                    if answered and to_come == 0 and (yield from self._is_stopped(grader, stopped)):
                        return
                yield from grader.graded(wait=True)
        finally:
            self._ended = time.perf_counter()

    def _is_stopped(self, grader: LookGrader, stopped: Callable[[], bool]) -> Generator[GradedItems, None, bool]:
        """Hand the first looks out, with nothing in the engine, and wait a moment for what is decided about them."""
        ends = math.inf
        while self._alone.looks and time.perf_counter() < ends:
            yield from grader.graded()
            if stopped():
                return True
            if grader.handed_out >= self._alone.looks:
                ends = min(ends, time.perf_counter() + _DECISION_SECONDS)
            time.sleep(0.005)
        return False

    def spent(self, items: GradedItems | None = None) -> GradedShare:
        """What it took, once it has ended, with the items that it was spent on."""
        engine, grader = self._engine, self._grader
        spent = Spent(
            seconds=self._ended - self._started,
            engine_seconds=engine.busy_seconds - self._busy,
            tokens=engine.tokens - self._tokens,
            truncated=sum(self._asked[index].truncated for one in self._prompts for index in one.requests),
            judge_seconds=grader.judge_seconds,
            judge_tokens=grader.judge_tokens,
        )
        return GradedShare({} if items is None else items, self._version, spent)
