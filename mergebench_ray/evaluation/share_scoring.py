"""One candidate's answers to a share of the items, asked of one engine and graded as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from mergebench_ray.engines import VLLMEngine
from mergebench_ray.evaluation.asked import Asked
from mergebench_ray.evaluation.graded import GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.look_grader import LookGrader

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Prompt


class ShareScoring:
    """The engine's present weights, asked a share of the items.

    Args:
        engine: answers with whatever weights it holds now.
        asked: requests, by their index in the batch.
        prompts: of that batch, in the order in which they are asked.
        in_flight: sequences that the engine computes at a time; None leaves that to it.
        grader: knows the looks.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        asked: Sequence[Asked],
        prompts: Sequence[Prompt],
        in_flight: int | None,
        grader: LookGrader,
    ) -> None:
        self._engine, self._asked, self._prompts, self._in_flight = engine, asked, prompts, in_flight
        self._grader = grader
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
            with self._grader as grader, closing(self._engine.stream(self._prompts, self._in_flight)) as steps:
                self._engine.forget_prefixes()
                for answered in steps:
                    for index, answer in answered:
                        grader.take(self._asked[index], answer)
                    if stopped():
                        return
                    yield from grader.graded()
                yield from grader.graded(wait=True)
        finally:
            self._ended = time.perf_counter()

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
