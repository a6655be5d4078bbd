"""Where candidates are merged, loaded and scored: the driver's threads between search, bank and engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray

from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Recipe
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import StoppedError
from mergebench_ray.evaluation.evaluator import Evaluator, grade_together
from mergebench_ray.evaluation.graded import GradedItems, GradedShare
from mergebench_ray.evaluation.order import Order
from mergebench_ray.evaluation.ordered_scoring import Answered, Look, OrderedScoring
from mergebench_ray.ray_actors import Actor
from mergebench_ray.scores import Scores
from mergebench_ray.search.earlier_items import NOTHING, Known
from mergebench_ray.search.losses import Losses, LostError
from mergebench_ray.search.standing import Cost, Standing
from mergebench_ray.search.supervisor import Engines, Supervisor
from mergebench_ray.weights.together import together

R = TypeVar("R")
_SPIN_SECONDS = 0.02


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
class GivenUp:
    """A candidate that is asked nothing more.

    Attributes:
        reason: why, in a few words.
    """

    reason: str


@dataclass(frozen=True)
class Step:
    """What a step of a candidate's trial came to.

    Attributes:
        recipe: what the candidate is.
        found: what was scored: everything, or up to the next look; None of a model that was scored before.
    """

    recipe: Recipe
    found: Measurement | Look | GivenUp | None


@dataclass(frozen=True)
class _Go:
    """A candidate that is being scored in order."""

    scoring: OrderedScoring
    engines: Engines
    before: Standing
    merge_seconds: float
    load_seconds: float
    began: float


class CandidateScorer:
    """Merges a recipe, puts it into free engines, scores it there; again, where something was lost on the way.

    A candidate of the search gets one group of engines; what is scored beside the search gets all of them. The engines
    of a candidate share its items. `begin` works in a thread of its own. The bank has one output buffer, so merging and
    loading are done by one thread at a time; scoring runs on all groups at once.

    Args:
        bank: the loaded bank.
        engines: which are free, and another one where one was lost.
        losses: counts those, by model.
    """

    def __init__(self, bank: Bank, engines: Supervisor, losses: Losses) -> None:
        self._bank, self._engines, self._losses = bank, engines, losses
        self._bank_lock = threading.Lock()
        self._order: Order | None = None
        self._known: set[str] = set()
        self._came = threading.Condition()
        self._steps: dict[int, Step | BaseException] = {}
        self._goes: dict[int, _Go] = {}
        self._standings: dict[int, Standing] = {}
        self._until: dict[int, int] = {}

    def score(
        self, recipe: Recipe, split: Split, domains: list[str] | None = None, known: Known = NOTHING
    ) -> Measurement:
        """Score the merged model of `recipe` on all engines; what is known of it is not asked.

        Raises:
            StoppedError: engines are lost under it again and again.
        """
        if known.is_all:
            return self._without_asking(split, recipe.digest, known)
        return self._required(recipe.digest, recipe.method, lambda: self._score(recipe, split, domains, known, True))

    def score_checkpoint(
        self,
        checkpoint: Checkpoint,
        base: Checkpoint,
        split: Split,
        domains: list[str] | None = None,
        known: Known = NOTHING,
    ) -> Measurement:
        """Score a checkpoint as it is, embeddings included: how base and specialists are measured.

        Raises:
            StoppedError: engines are lost under it again and again.
        """
        if known.is_all:
            return self._without_asking(split, checkpoint.digest(), known)

        def score() -> Measurement:
            with self._engines.lent(everything=True) as engines:
                started, actors = time.perf_counter(), self._engines.of(engines)
                ray.get([one.call(Evaluator.load_checkpoint, checkpoint, base) for one in actors])
                return self._answer(engines, actors, split, domains, known, 0.0, time.perf_counter() - started)

        return self._required(checkpoint.digest(), str(checkpoint), score)

    @property
    def between_merges(self) -> AbstractContextManager[Any]:
        """A block in which no candidate is merged, and no engine reads one."""
        return self._bank_lock

    # A search's candidates

    def begin_search(self, known: Sequence[str], order: Order | None) -> None:
        """Say how candidates are asked, before the first `begin`.

        Args:
            known: digests of recipes that were scored before on the same items.
            order: of the items, and when to look at them; None where all are asked at once.
        """
        self._known, self._order = set(known), order

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

    def begin(self, number: int, recipe: Recipe) -> None:
        """Score a candidate up to its next look, or as a whole where there are none, in a thread.

        What is found is kept until `take` fetches it. Nothing is done for a candidate that was scored before.
        """
        threading.Thread(target=self._step, args=(number, recipe), daemon=True).start()

    def take(self, number: int, timeout: float | None = None) -> Step | None:
        """The last step of a candidate, once it is there; None where it, or another's, is not within the time.

        Args:
            number: of the candidate.
            timeout: seconds; None waits for this candidate's as long as it takes.

        Raises:
            Exception: whatever the step failed with.
        """
        with self._came:
            if timeout is None:
                self._came.wait_for(lambda: number in self._steps)
            elif not self._steps:
                self._came.wait(timeout)
            elif number not in self._steps:
                self._came.wait(_SPIN_SECONDS)  # another's is there, which the caller comes to
            step = self._steps.pop(number, None)
        if isinstance(step, BaseException):
            raise step
        return step

    def halt(self, number: int) -> tuple[Measurement, Standing]:
        """Ask a candidate nothing more for now, and free its engines.

        Returns:
            what it has scored so far, and how it goes on.
        """
        go = self._goes.pop(number)
        scores: Scores | None = None
        try:
            with self._engines.watched(go.engines):
                scores, answered = go.scoring.finish()
        except LostError:
            answered = go.scoring.given(time.perf_counter() - go.began)
        finally:
            self._engines.release(go.engines)
        standing = self._stood(go, answered)
        self._standings[number] = standing
        return self._measured(standing) if scores is None else _measured(scores, standing), standing

    def _stood(self, go: _Go, answered: Answered) -> Standing:
        cost = Cost(
            go.before.cost.merge_seconds + go.merge_seconds,
            go.before.cost.load_seconds + go.load_seconds,
            answered.graded.spent,
            go.engines,
            go.before.cost.reused,
        )
        assert self._order is not None
        places = self._order.places[: answered.count]
        return Standing(go.before.version, {place: answered.graded.items[place] for place in places}, cost)

    def _step(self, number: int, recipe: Recipe) -> None:
        found: Step | BaseException
        try:
            step = self._repeated(recipe.digest, lambda: self._next(number, recipe))
            if isinstance(step, GivenUp) and number in self._goes:
                self.halt(number)  # another candidate that is the same was given up meanwhile
            found = Step(recipe, step)
        except BaseException as error:  # whoever takes the step is told
            found = error
        with self._came:
            self._steps[number] = found
            self._came.notify_all()

    def _next(self, number: int, recipe: Recipe) -> Measurement | Look | None:
        if number not in self._goes:
            if number not in self._standings and recipe.digest in self._known:
                return None
            if self._order is None:
                before = self._standings.get(number, Standing(recipe.digest))
                return self._score(recipe, "validation", None, Known(before.items, before.cost.reused))
            self._goes[number] = self._begin(number, recipe, self._order)
        go = self._goes[number]
        try:
            with self._engines.watched(go.engines):
                look = go.scoring.next_look()
        except LostError:
            # The go begins again where it began, so that its answers are those that it would have given.
            del self._goes[number]
            self._engines.release(go.engines)
            raise
        assert look is not None, f"candidate {number} has been asked everything"
        return look

    def _begin(self, number: int, recipe: Recipe, order: Order) -> _Go:
        before = self._standings.get(number, Standing(recipe.digest))
        engines = self._engines.acquire()
        try:
            with self._engines.watched(engines):
                actors = self._engines.of(engines)
                merge_seconds, load_seconds = self._load(actors, recipe)
                if before.items:
                    # All of this is wanted, so nothing is gained by computing little at a time.
                    order = replace(order, looks=(), start=before.count, end=self._until[number], in_flight=None)
                scoring = OrderedScoring(actors, "validation", order, before.answered)
        except BaseException:
            self._engines.release(engines)
            raise
        return _Go(scoring, engines, before, merge_seconds, load_seconds, time.perf_counter())

    # One model

    def _required(self, digest: str, name: str, score: Callable[[], Measurement]) -> Measurement:
        """Score what the sweep cannot do without, which every sitting tries anew: what was to blame may be mended."""
        self._losses.forgive(digest)
        found = self._repeated(digest, score)
        if isinstance(found, GivenUp):
            raise StoppedError(f"{name}: cannot be scored: {found.reason}; see the engines' logs in the run's folder")
        return found

    def _repeated(self, digest: str, step: Callable[[], R]) -> R | GivenUp:
        """Take a step, again where something was lost under it, until the model itself is to blame."""
        while (reason := self._losses.given_up(digest)) is None:
            try:
                return step()
            except LostError as lost:
                if lost.strike:
                    self._losses.strike(digest, lost.reason, lost.strike)
        return GivenUp(reason)

    def _measured(self, standing: Standing, split: Split = "validation") -> Measurement:
        """What was scored, of all items or some, without any engine's computing."""
        graded = GradedShare(dict(standing.items), standing.version, standing.cost.spent)
        return _measured(self._engines.ask(Evaluator.combine, split, [graded], partial=True), standing)

    def _without_asking(self, split: Split, version: str, known: Known) -> Measurement:
        return self._measured(Standing(version, known.items, Cost(reused=known.sources)), split)

    def _load(self, actors: Sequence[Actor[Evaluator]], recipe: Recipe) -> tuple[float, float]:
        """Merge a recipe into engines; what both took.

        Those alone may be asked for it: one that took the place of a lost one meanwhile holds other weights.
        """
        with self._bank_lock:
            merged = self._bank.merge(recipe)
            started = time.perf_counter()
            company = together(self._engines.nodes(actors))
            loads = [
                one.call(Evaluator.load, merged.manifest, merged.places, beside)
                for one, beside in zip(actors, company, strict=True)
            ]
            try:
                # No merge may begin while one of them still reads, also where another is lost.
                for load in loads:
                    ray.wait([load], timeout=None)
                ray.get(loads)
            except ray.exceptions.RayTaskError as error:
                # Whatever it says: what a shard held that has begun again cannot be read.
                if self._bank.holds(merged):
                    raise
                raise LostError("a shard of the bank was lost while engines read from it") from error
            return merged.seconds, time.perf_counter() - started

    def _score(
        self, recipe: Recipe, split: Split, domains: list[str] | None, known: Known, everything: bool = False
    ) -> Measurement:
        with self._engines.lent(everything=everything) as engines:
            actors = self._engines.of(engines)
            return self._answer(engines, actors, split, domains, known, *self._load(actors, recipe))

    def _answer(
        self,
        engines: Engines,
        actors: Sequence[Actor[Evaluator]],
        split: Split,
        domains: list[str] | None,
        known: Known,
        merge_seconds: float,
        load_seconds: float,
    ) -> Measurement:
        started = time.perf_counter()
        scores, items = grade_together(actors, split, domains, known.items)
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
