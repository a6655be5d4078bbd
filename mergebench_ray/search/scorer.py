"""Where candidates are merged, loaded and scored: one actor between the search, the bank and the engines."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Recipe
from mergebench_ray.evaluation import DomainScore, Scores, normalised_average
from mergebench_ray.search.space import Space


@dataclass(frozen=True)
class Measurement:
    """What scoring one model gave and took.

    Attributes:
        scores: per domain and item.
        merge_seconds: the fused pass; 0 for a checkpoint that is not merged.
        load_seconds: replacing the engine's weights.
        score_seconds: answering and grading.
        engine: index of the engine that answered.
    """

    scores: Scores
    merge_seconds: float
    load_seconds: float
    score_seconds: float
    engine: int


class CandidateScorer:
    """Merges a recipe, puts it into a free engine, scores it there.

    Runs as an actor with as many threads as there are engines. The bank has one output buffer, so merging and loading
    are done by one thread at a time; scoring runs on all engines at once.

    Args:
        bank: handle of the loaded bank.
        evaluators: handles of the evaluator actors.
    """

    def __init__(self, bank: Bank, evaluators: Sequence[Any]) -> None:
        self._bank = bank
        self._evaluators = list(evaluators)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(self._evaluators)):
            self._free.put(index)
        self._bank_lock = threading.Lock()
        self._finished: dict[str, Measurement] = {}
        self._space: Space | None = None
        self._references: dict[str, DomainScore] = {}
        self._values: dict[str, float] = {}

    def score(self, recipe: Recipe, split: str, domains: list[str] | None = None) -> Measurement:
        """Score the merged model of `recipe`."""
        index = self._free.get()
        try:
            with self._bank_lock:
                merged = self._bank.merge(recipe)
                started = time.perf_counter()
                ray.get(self._evaluators[index].load.remote(merged.manifest))
                load_seconds = time.perf_counter() - started
            return self._answer(index, split, domains, merged.seconds, load_seconds)
        finally:
            self._free.put(index)

    def score_checkpoint(
        self, checkpoint: Checkpoint, base: Checkpoint, split: str, domains: list[str] | None = None
    ) -> Measurement:
        """Score a checkpoint as it is, embeddings included: how base and specialists are measured."""
        index = self._free.get()
        try:
            started = time.perf_counter()
            ray.get(self._evaluators[index].load_checkpoint.remote(checkpoint, base))
            return self._answer(index, split, domains, 0.0, time.perf_counter() - started)
        finally:
            self._free.put(index)

    def begin_search(self, space: Space, references: Mapping[str, DomainScore], known: Mapping[str, float]) -> None:
        """Say what candidates are and what they are measured against, before the first `evaluate`.

        Args:
            space: to read suggestions.
            references: the specialists' scores by domain, on the validation split.
            known: recipe digest -> normalised average, of candidates scored before on the same items.
        """
        self._space, self._references, self._values = space, dict(references), dict(known)

    def evaluate(self, suggestion: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Recipe and normalised average on validation; a candidate that was scored before is not scored again.

        The measurement is kept until `take` fetches it, so that what passes through Tune stays small.
        """
        assert self._space is not None
        recipe = self._bank.recipe(*self._space.candidate(suggestion))
        if recipe.digest not in self._values:
            measurement = self.score(recipe, "validation")
            self._finished[recipe.digest] = measurement
            self._values[recipe.digest] = normalised_average(measurement.scores.domains, self._references)[0]
        return recipe.model_dump(), self._values[recipe.digest]

    def take(self, digest: str) -> Measurement | None:
        """The measurement of a candidate scored since the last call; None if it was not scored here."""
        return self._finished.pop(digest, None)

    def _answer(
        self, index: int, split: str, domains: list[str] | None, merge_seconds: float, load_seconds: float
    ) -> Measurement:
        started = time.perf_counter()
        scores: Scores = ray.get(self._evaluators[index].score.remote(split, domains))
        return Measurement(scores, merge_seconds, load_seconds, time.perf_counter() - started, index)


def start_scorer(bank: Bank, evaluators: Sequence[Any]) -> Any:
    """Start the scorer as an actor with a thread per engine."""
    actor = ray.remote(CandidateScorer)
    return actor.options(num_cpus=0, max_concurrency=len(evaluators) + 1).remote(bank, evaluators)
