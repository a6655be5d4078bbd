"""Where candidates are merged, loaded and scored: one actor between the search, the bank and the engines."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Recipe
from mergebench_ray.config.fields import Split
from mergebench_ray.evaluation.evaluator import Evaluator, grade_together
from mergebench_ray.evaluation.graded import GradedItems, GradedShare
from mergebench_ray.evaluation.order import Order
from mergebench_ray.evaluation.ordered_scoring import Look, OrderedScoring
from mergebench_ray.ray_actors import Actor, actors_of
from mergebench_ray.scores import Scores
from mergebench_ray.search.earlier_items import NOTHING, Known
from mergebench_ray.search.space import OPTUNA_NUMBER, Space
from mergebench_ray.search.standing import Cost, Standing

Engines = tuple[int, ...]
"""Indices of the engines that share a candidate's items."""


@dataclass(frozen=True)
class Measurement:
    """What scoring one model gave and took.

    Attributes:
        scores: per domain and item.
        merge_seconds: the fused pass; 0 for a checkpoint that is not merged.
        load_seconds: replacing the engine's weights.
        score_seconds: answering and grading.
        engines: indices of the engines that answered.
        items: what came of each item, by its place in the split.
        reused: earlier run -> items that were answered there.
    """

    scores: Scores
    merge_seconds: float
    load_seconds: float
    score_seconds: float
    engines: Engines
    items: GradedItems = field(default_factory=dict, repr=False)
    reused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a step of a candidate's trial came to.

    Attributes:
        recipe: what the candidate is.
        found: what was scored: everything, or up to the next look; None of a model that was scored before.
    """

    recipe: Recipe
    found: Measurement | Look | None


@dataclass(frozen=True)
class _Go:
    """A candidate that is being scored in order."""

    scoring: OrderedScoring
    engines: Engines
    before: Standing
    merge_seconds: float
    load_seconds: float


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
        self._free: queue.SimpleQueue[Engines] = queue.SimpleQueue()
        for group in range(self._num_groups):
            self._free.put(tuple(range(group * engines_per_candidate, (group + 1) * engines_per_candidate)))
        self._choosing = threading.Lock()
        self._bank_lock = threading.Lock()
        self._space: Space | None = None
        self._order: Order | None = None
        self._known: set[str] = set()
        self._steps: dict[int, Step] = {}
        self._goes: dict[int, _Go] = {}
        self._standings: dict[int, Standing] = {}
        self._until: dict[int, int] = {}

    def score(
        self, recipe: Recipe, split: Split, domains: list[str] | None = None, known: Known = NOTHING
    ) -> Measurement:
        """Score the merged model of `recipe` on all engines; what is known of it is not asked."""
        if known.is_all:
            return self._without_asking(split, recipe.digest, known)
        with self._engines(everything=True) as engines:
            return self._score(engines, recipe, split, domains, known)

    def score_checkpoint(
        self,
        checkpoint: Checkpoint,
        base: Checkpoint,
        split: Split,
        domains: list[str] | None = None,
        known: Known = NOTHING,
    ) -> Measurement:
        """Score a checkpoint as it is, embeddings included: how base and specialists are measured."""
        if known.is_all:
            return self._without_asking(split, checkpoint.digest(), known)
        with self._engines(everything=True) as engines:
            started = time.perf_counter()
            ray.get([self._evaluators[index].call(Evaluator.load_checkpoint, checkpoint, base) for index in engines])
            return self._answer(engines, split, domains, known, 0.0, time.perf_counter() - started)

    def begin_search(self, space: Space, known: Sequence[str], order: Order | None) -> None:
        """Say what candidates are and how they are asked, before the first `step`.

        Args:
            space: to read suggestions.
            known: digests of recipes that were scored before on the same items.
            order: of the items, and when to look at them; None where all are asked at once.
        """
        self._space, self._known, self._order = space, set(known), order

    def keep(self, number: int, standing: Standing) -> None:
        """Take a candidate's answers from whoever kept them: they are not asked again."""
        self._standings[number] = standing

    def measured(self, number: int) -> Measurement:
        """What a candidate has scored so far."""
        return self._measured(self._standings[number])

    def go_on(self, number: int, until: int) -> None:
        """A candidate that waits is scored on with its next step, up to so many of the order's first items."""
        self._until[number] = until

    def end(self, number: int, known: str | None) -> None:
        """A candidate is not scored on.

        Args:
            number: of it.
            known: its recipe's digest, if it was scored in full, and is on disk.
        """
        self._standings.pop(number, None)
        if known is not None:
            self._known.add(known)

    def step(self, suggestion: Mapping[str, Any]) -> None:
        """Score a candidate up to its next look, or as a whole where there are none.

        What is found is kept until `take` fetches it, so that nothing of it passes through Tune. Nothing is done for a
        candidate that was scored before.
        """
        assert self._space is not None
        number = int(suggestion[OPTUNA_NUMBER])
        recipe = self._bank.recipe(*self._space.candidate(suggestion))
        self._steps[number] = Step(recipe, self._next(number, recipe))

    def take(self, number: int) -> Step:
        """The last step of a candidate."""
        return self._steps.pop(number)

    def halt(self, number: int) -> tuple[Measurement, Standing]:
        """Ask a candidate nothing more for now, and free its engines.

        Returns:
            what it has scored so far, and how it goes on.
        """
        go = self._goes.pop(number)
        try:
            scores, answered = go.scoring.finish()
        finally:
            self._free.put(go.engines)
        cost = Cost(
            go.before.cost.merge_seconds + go.merge_seconds,
            go.before.cost.load_seconds + go.load_seconds,
            answered.graded.spent,
            go.engines,
            go.before.cost.reused,
        )
        assert self._order is not None
        places = self._order.places[: answered.count]
        standing = Standing(go.before.version, {place: answered.graded.items[place] for place in places}, cost)
        self._standings[number] = standing
        return _measured(scores, standing), standing

    def _next(self, number: int, recipe: Recipe) -> Measurement | Look | None:
        if number not in self._goes:
            if number not in self._standings and recipe.digest in self._known:
                return None
            if self._order is None:
                before = self._standings.pop(number, Standing(recipe.digest))
                with self._engines() as engines:
                    return self._score(engines, recipe, "validation", None, Known(before.items, before.cost.reused))
            self._goes[number] = self._begin(number, recipe, self._order)
        look = self._goes[number].scoring.next_look()
        assert look is not None, f"candidate {number} has been asked everything"
        return look

    def _begin(self, number: int, recipe: Recipe, order: Order) -> _Go:
        before = self._standings.get(number, Standing(recipe.digest))
        [engines] = self._acquire(1)
        try:
            merge_seconds, load_seconds = self._load(engines, recipe)
            evaluators = [self._evaluators[index] for index in engines]
            if before.items:
                # All of this is wanted, so nothing is gained by computing little at a time.
                order = replace(order, looks=(), start=before.count, end=self._until.pop(number), in_flight=None)
            scoring = OrderedScoring(evaluators, "validation", order, before.answered)
        except BaseException:
            self._free.put(engines)
            raise
        return _Go(scoring, engines, before, merge_seconds, load_seconds)

    def _measured(self, standing: Standing, split: Split = "validation") -> Measurement:
        """What was scored, of all items or some, without any engine's computing."""
        graded = GradedShare(dict(standing.items), standing.version, standing.cost.spent)
        with self._idle_engine() as index:
            combine = self._evaluators[index].method(Evaluator.combine)
            return _measured(ray.get(combine(split, [graded], partial=True)), standing)

    def _without_asking(self, split: Split, version: str, known: Known) -> Measurement:
        return self._measured(Standing(version, known.items, Cost(reused=known.sources)), split)

    @contextmanager
    def _engines(self, *, everything: bool = False) -> Iterator[Engines]:
        """Wait for a free group of engines, or for all of them."""
        groups = self._acquire(self._num_groups if everything else 1)
        try:
            yield tuple(sorted(index for group in groups for index in group))
        finally:
            for group in groups:
                self._free.put(group)

    @contextmanager
    def _idle_engine(self) -> Iterator[int]:
        """An engine that answers at once: one that is being asked a candidate's items does after those.

        Where all are at work, it is one of those: whoever waits here may be who has to halt a candidate.
        """
        try:
            group = self._free.get_nowait()
        except queue.Empty:
            yield 0
            return
        try:
            yield group[0]
        finally:
            self._free.put(group)

    def _acquire(self, count: int) -> list[Engines]:
        # One caller at a time, lest two that want all hold half of them each.
        with self._choosing:
            return [self._free.get() for _ in range(count)]

    def _load(self, engines: Engines, recipe: Recipe) -> tuple[float, float]:
        """Merge a recipe into engines; what both took."""
        with self._bank_lock:
            merged = self._bank.merge(recipe)
            started = time.perf_counter()
            ray.get([self._evaluators[index].call(Evaluator.load, merged.manifest) for index in engines])
            return merged.seconds, time.perf_counter() - started

    def _score(
        self, engines: Engines, recipe: Recipe, split: Split, domains: list[str] | None, known: Known
    ) -> Measurement:
        return self._answer(engines, split, domains, known, *self._load(engines, recipe))

    def _answer(
        self,
        engines: Engines,
        split: Split,
        domains: list[str] | None,
        known: Known,
        merge_seconds: float,
        load_seconds: float,
    ) -> Measurement:
        started = time.perf_counter()
        scores, items = grade_together([self._evaluators[index] for index in engines], split, domains, known.items)
        seconds = time.perf_counter() - started
        return Measurement(scores, merge_seconds, load_seconds, seconds, engines, items, known.sources)


def _measured(scores: Scores, standing: Standing) -> Measurement:
    cost = standing.cost
    return Measurement(
        scores,
        cost.merge_seconds,
        cost.load_seconds,
        cost.spent.seconds,
        cost.engines,
        items=standing.items,
        reused=cost.reused,
    )


def start_scorer(
    bank: Bank, evaluators: Sequence[Actor[Evaluator]], engines_per_candidate: int
) -> Actor[CandidateScorer]:
    """Start the scorer as an actor with a thread for each candidate that is scored at once."""
    threads = len(evaluators) // engines_per_candidate + 1
    make = actors_of(CandidateScorer, num_cpus=0, max_concurrency=threads)
    return make(bank, evaluators, engines_per_candidate)
