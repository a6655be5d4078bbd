"""Where candidates are merged, loaded and scored: one actor between the search, the bank and the engines."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Recipe
from mergebench_ray.config.fields import Split
from mergebench_ray.evaluation import score_together
from mergebench_ray.evaluation.evaluator import Evaluator
from mergebench_ray.ray_actors import Actor, actors_of
from mergebench_ray.scores import Scores
from mergebench_ray.search.objectives.errors import Measured
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.space import Space


@dataclass(frozen=True)
class Measurement:
    """What scoring one model gave and took.

    Attributes:
        scores: per domain and item.
        merge_seconds: the fused pass; 0 for a checkpoint that is not merged.
        load_seconds: replacing the engine's weights.
        score_seconds: answering and grading.
        engines: indices of the engines that answered.
    """

    scores: Scores
    merge_seconds: float
    load_seconds: float
    score_seconds: float
    engines: tuple[int, ...]


class CandidateScorer:
    """Merges a recipe, puts it into free engines, scores it there.

    A candidate of the search gets one group of engines; what is scored beside the search gets all of them. The engines
    of a candidate share its items. Runs as an actor with as many threads as there are groups. The bank has one output
    buffer, so merging and loading are done by one thread at a time; scoring runs on all groups at once.

    Args:
        bank: handle of the loaded bank.
        evaluators: the evaluator actors.
        engines_per_candidate: engines of a group; divides their number.
    """

    def __init__(self, bank: Bank, evaluators: Sequence[Actor[Evaluator]], engines_per_candidate: int = 1) -> None:
        self._bank = bank
        self._evaluators = list(evaluators)
        self._num_groups = len(self._evaluators) // engines_per_candidate
        self._free: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        for group in range(self._num_groups):
            self._free.put(tuple(range(group * engines_per_candidate, (group + 1) * engines_per_candidate)))
        self._choosing = threading.Lock()
        self._bank_lock = threading.Lock()
        self._finished: dict[str, Measurement] = {}
        self._space: Space | None = None
        self._objective: Objective | None = None
        self._values: dict[str, float] = {}

    def score(self, recipe: Recipe, split: Split, domains: list[str] | None = None) -> Measurement:
        """Score the merged model of `recipe` on all engines."""
        with self._engines(everything=True) as engines:
            return self._score(engines, recipe, split, domains)

    def score_checkpoint(
        self, checkpoint: Checkpoint, base: Checkpoint, split: Split, domains: list[str] | None = None
    ) -> Measurement:
        """Score a checkpoint as it is, embeddings included: how base and specialists are measured."""
        with self._engines(everything=True) as engines:
            started = time.perf_counter()
            ray.get([self._evaluators[index].call(Evaluator.load_checkpoint, checkpoint, base) for index in engines])
            return self._answer(engines, split, domains, 0.0, time.perf_counter() - started)

    def begin_search(self, space: Space, objective: Objective, known: Mapping[str, float]) -> None:
        """Say what candidates are and what the search is after, before the first `evaluate`.

        Args:
            space: to read suggestions.
            objective: bound to what it measures against on the validation split.
            known: recipe digest -> the objective's value, of candidates scored before on the same items.
        """
        self._space, self._objective, self._values = space, objective, dict(known)

    def evaluate(self, suggestion: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Recipe and the objective on validation; a candidate that was scored before is not scored again.

        NaN for a candidate whose scores cannot be normalised, such as one so broken that a metric is no number.

        The measurement is kept until `take` fetches it, so that what passes through Tune stays small.
        """
        assert self._space is not None
        assert self._objective is not None
        recipe = self._bank.recipe(*self._space.candidate(suggestion))
        if recipe.digest not in self._values:
            with self._engines() as engines:
                measurement = self._score(engines, recipe, "validation", None)
            self._finished[recipe.digest] = measurement
            value = self._objective.value(Measured.of(measurement.scores).scores)
            self._values[recipe.digest] = math.nan if value is None else value
        return recipe.model_dump(), self._values[recipe.digest]

    def take(self, digest: str) -> Measurement | None:
        """The measurement of a candidate scored since the last call; None if it was not scored here."""
        return self._finished.pop(digest, None)

    @contextmanager
    def _engines(self, *, everything: bool = False) -> Iterator[tuple[int, ...]]:
        """Wait for a free group of engines, or for all of them."""
        # One caller at a time, lest two that want all hold half of them each.
        with self._choosing:
            groups = [self._free.get() for _ in range(self._num_groups if everything else 1)]
        try:
            yield tuple(sorted(index for group in groups for index in group))
        finally:
            for group in groups:
                self._free.put(group)

    def _score(self, engines: tuple[int, ...], recipe: Recipe, split: Split, domains: list[str] | None) -> Measurement:
        with self._bank_lock:
            merged = self._bank.merge(recipe)
            started = time.perf_counter()
            ray.get([self._evaluators[index].call(Evaluator.load, merged.manifest) for index in engines])
            load_seconds = time.perf_counter() - started
        return self._answer(engines, split, domains, merged.seconds, load_seconds)

    def _answer(
        self,
        engines: tuple[int, ...],
        split: Split,
        domains: list[str] | None,
        merge_seconds: float,
        load_seconds: float,
    ) -> Measurement:
        started = time.perf_counter()
        scores = score_together([self._evaluators[index] for index in engines], split, domains)
        return Measurement(scores, merge_seconds, load_seconds, time.perf_counter() - started, engines)


def start_scorer(
    bank: Bank, evaluators: Sequence[Actor[Evaluator]], engines_per_candidate: int
) -> Actor[CandidateScorer]:
    """Start the scorer as an actor with a thread for each candidate that is scored at once."""
    threads = len(evaluators) // engines_per_candidate + 1
    make = actors_of(CandidateScorer, num_cpus=0, max_concurrency=threads)
    return make(bank, evaluators, engines_per_candidate)
