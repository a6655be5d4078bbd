"""The objective: what a suggestion comes to, what is measured again and what is not, which engines answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray
from ray.exceptions import RayActorError

from actors_here import ActorHere
from made_up_search import item
from mergebench_ray.bank import Bank
from mergebench_ray.config import Recipe
from mergebench_ray.errors import StoppedError
from mergebench_ray.evaluation.graded import GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.order import Order
from mergebench_ray.evaluation.ordered_scoring import Answered, Look
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.losses import Losses
from mergebench_ray.search.scorer import CandidateScorer, GivenUp, Measurement, Step
from mergebench_ray.search.standing import Cost, Standing
from mergebench_ray.search.supervisor import LostError, Supervisor


class RecordingBank:
    """Makes recipes as a bank does, and notes what it merges; one merge at a time, or the test fails."""

    def __init__(self) -> None:
        self.merged: list[str] = []
        self._busy = threading.Lock()

    def recipe(self, method: str, parameters: dict[str, Any]) -> Recipe:
        models = {"base": "b", "base_digest": "c", "specialists": {"math": "s"}, "specialist_digests": {"math": "d"}}
        return Recipe.model_validate({"method": method, "parameters": parameters, **models})

    def merge(self, recipe: Recipe) -> Any:
        assert self._busy.acquire(blocking=False), "two merges at once in one buffer"
        self.merged.append(recipe.digest)
        self._busy.release()
        return SimpleNamespace(manifest=recipe.digest, seconds=0.1, places=())


class RecordingEvaluator:
    """Notes what is loaded into it."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def is_there(self) -> None:
        pass

    def start(self) -> None:
        pass

    def spent(self) -> None:
        pass

    def load(self, manifest: str, places: Any) -> None:
        self.loaded.append(manifest)

    def load_checkpoint(self, checkpoint: str, base: str) -> None:
        self.loaded.append((checkpoint, base))


class Parts:
    """A scorer with its bank and engines; `score` is what any model scores in math."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        engines: int = 1,
        per_candidate: int = 1,
        one_by_one: bool = False,
    ) -> None:
        monkeypatch.setattr(ray, "get", got)
        monkeypatch.setattr(ray, "kill", lambda _actor: None)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
        monkeypatch.setattr(module, "grade_together", self._answer)
        self.score = 0.4
        self.asked: list[tuple[int, str]] = []
        self.fails: list[BaseException | None] = []
        self.said: list[str] = []
        self.wait: threading.Barrier | None = None
        self.bank = RecordingBank()
        self.handles: list[ActorHere] = []
        self.supervisor = Supervisor(self._start, lambda actor: actor.actor, engines, per_candidate, self.said.append)
        self.supervisor.begin(one_by_one=one_by_one)
        self.supervisor.wait()
        self.losses = Losses(folder / "losses.jsonl", self.said.append)
        bank: Any = self.bank
        self.scorer = CandidateScorer(bank, self.supervisor, self.losses)

    @property
    def evaluators(self) -> list[RecordingEvaluator]:
        return [handle.actor for handle in self.supervisor.actors]

    def _start(self, _index: int) -> Any:
        self.handles.append(ActorHere(RecordingEvaluator()))
        return self.handles[-1]

    def _answer(
        self, evaluators: Sequence[ActorHere], split: str, domains: list[str] | None, known: GradedItems
    ) -> tuple[Scores, GradedItems]:
        if self.wait is not None:
            self.wait.wait(timeout=60)
        self.asked.append((len(evaluators), split))
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        scores = Scores(split, {"math": DomainScore(self.score, 0.01, 64)}, [], "v", 1.0, 1.0, 10, 0)
        return scores, {place: item(place, "math", 1.0) for place in range(4)} | dict(known)

    def begin(self, known: Sequence[str] = (), order: Order | None = None) -> None:
        self.scorer.begin_search(known, order)

    def step(self, number: int, density: float) -> Step:
        self.scorer.begin(number, self.bank.recipe("ties", {"density": density}))
        step = self.scorer.take(number)
        assert step is not None
        return step

    def loses(self, index: int = 0, times: int = 1) -> None:
        """Let the engine be lost under whatever is asked next, and those that take its place."""
        for _ in range(times):
            self.fails.append(EngineDiedError(self, index))


class EngineDiedError(RayActorError):
    """Of the engine that is there when it is raised."""

    def __init__(self, parts: Parts, index: int) -> None:
        super().__init__()
        self._parts, self._index = parts, index

    @property
    def actor_id(self) -> str:
        return self._parts.supervisor.actors[self._index].id

    @actor_id.setter
    def actor_id(self, _value: Any) -> None:
        pass


def got(values: Any) -> Any:
    """What calls of objects of this process came back with; an error where one of them is."""
    for one in values if isinstance(values, list) else [values]:
        if isinstance(one, BaseException):
            raise one
    return values


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parts:
    return Parts(monkeypatch, tmp_path)


def test_a_candidate_is_scored_as_a_whole_where_there_are_no_looks(parts: Parts) -> None:
    parts.begin()
    step = parts.step(0, 0.5)
    assert isinstance(step.found, Measurement)
    assert step.recipe == parts.bank.recipe("ties", {"density": 0.5})
    assert (step.found.scores.domains["math"].score, step.found.merge_seconds, step.found.engines) == (0.4, 0.1, (0,))
    assert parts.asked == [(1, "validation")]


def test_a_candidate_that_was_scored_is_neither_merged_nor_asked_again(parts: Parts) -> None:
    parts.begin()
    first = parts.step(0, 0.5)
    parts.scorer.end(0, first.recipe.digest)
    again = parts.step(1, 0.5)
    assert (again.recipe, again.found) == (first.recipe, None)
    assert len(parts.bank.merged) == len(parts.asked) == 1
    assert parts.step(2, 0.6).found is not None


def test_a_candidate_of_an_earlier_sitting_is_not_scored_again(parts: Parts) -> None:
    parts.begin()
    parts.begin(known=[parts.step(0, 0.5).recipe.digest])
    assert parts.step(1, 0.5).found is None
    assert len(parts.asked) == 1


def test_a_step_is_handed_over_once(parts: Parts) -> None:
    parts.begin()
    parts.step(0, 0.5)
    assert parts.scorer.take(0, timeout=0.01) is None


def test_candidates_of_a_search_are_scored_at_once_each_on_engines_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=4, per_candidate=2)
    parts.begin()
    parts.wait = threading.Barrier(2)  # broken after a minute, if the second candidate waits for the first
    with ThreadPoolExecutor(2) as pool:
        found = [step.found for step in pool.map(parts.step, (0, 1), (0.2, 0.4))]
    assert sorted(one.engines for one in found if isinstance(one, Measurement)) == [(0, 1), (2, 3)]
    assert all(len(evaluator.loaded) == 1 for evaluator in parts.evaluators)


class LooksHere:
    """Stands for an `OrderedScoring`: the next two items at each look."""

    made: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, evaluators: Any, split: str, order: Order, before: Answered | None) -> None:
        self.made.append((order.start, order.end))
        assert order.start == (0 if before is None else before.count)
        self._order, self._count = order, order.start
        self._items = {} if before is None else dict(before.graded.items)
        self._seconds = 0.0 if before is None else before.graded.spent.seconds

    def next_look(self) -> Look:
        new = {place: item(place, "math", 1.0) for place in self._order.places[self._count : self._count + 2]}
        self._count += len(new)
        self._items |= new
        return Look(self._count, new)

    def given(self, seconds: float) -> Answered:
        return Answered(GradedShare(self._items, "v", Spent(seconds=seconds)), self._count)

    def finish(self) -> tuple[Scores, Answered]:
        graded = GradedShare(self._items, "v", Spent(seconds=self._seconds + 1.0))
        domains = {"math": DomainScore(1.0, 0.0, self._count)}
        scores = Scores("validation", domains, [], "v", graded.spent.seconds, 0.0, 0, 0)
        return scores, Answered(graded, self._count)


ORDER = Order((3, 1, 0, 2, 4), in_flight=2, looks=(2, 4))


@pytest.fixture
def looked(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(module, "OrderedScoring", LooksHere)
    monkeypatch.setattr(LooksHere, "made", [])
    parts.begin(order=ORDER)
    return parts


def test_a_candidate_is_looked_at_until_it_is_halted_and_goes_on_from_there(looked: Parts) -> None:
    first = looked.step(0, 0.5)
    assert isinstance(first.found, Look)
    assert (first.found.count, list(first.found.items)) == (2, [3, 1])
    measured, standing = looked.scorer.halt(0)
    assert (list(standing.items), standing.version) == ([3, 1], first.recipe.digest)
    assert (measured.score_seconds, measured.engines) == (1.0, (0,))
    looked.scorer.go_on(0, 4)
    second = looked.step(0, 0.5).found
    assert isinstance(second, Look)
    assert (second.count, list(second.items)) == (4, [0, 2])
    measured, standing = looked.scorer.halt(0)
    assert list(standing.items) == [3, 1, 0, 2]
    assert (measured.score_seconds, measured.merge_seconds, len(looked.bank.merged)) == (2.0, 0.2, 2)
    assert LooksHere.made == [(0, None), (2, 4)]


def test_engines_are_free_as_soon_as_a_candidate_is_halted(looked: Parts) -> None:
    for number in range(3):
        looked.step(number, 0.2 + 0.1 * number)
        looked.scorer.halt(number)
    assert looked.scorer.score(looked.bank.recipe("model_soup", {}), "test").engines == (0,)


def test_only_a_candidate_that_was_scored_in_full_is_known_afterwards(looked: Parts) -> None:
    looked.step(0, 0.5)
    looked.scorer.halt(0)
    looked.scorer.end(0, None)
    again = looked.step(1, 0.5)
    assert again.found is not None
    looked.scorer.halt(1)
    looked.scorer.end(1, again.recipe.digest)
    assert looked.step(2, 0.5).found is None


def test_a_candidate_of_an_earlier_sitting_goes_on_from_its_answers(
    looked: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined = Scores("validation", {"math": DomainScore(1.0, 0.0, 2)}, [], "v", 5.0, 0.0, 0, 0)
    monkeypatch.setattr(RecordingEvaluator, "combine", lambda *_, **__: combined, raising=False)
    digest = looked.step(9, 0.5).recipe.digest
    looked.scorer.halt(9)
    spent = Spent(seconds=5.0)
    standing = Standing(digest, {3: item(3, "math", 1.0), 1: item(1, "math", 0.0)}, Cost(0.5, 0.25, spent, (0,)))
    looked.scorer.keep(0, standing)
    assert looked.scorer.measured(0).scores == combined
    looked.scorer.go_on(0, 4)
    assert isinstance(looked.step(0, 0.5).found, Look)
    assert LooksHere.made[-1] == (2, 4)


def test_what_was_scored_is_added_up_by_an_engine_that_is_not_at_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=4, per_candidate=2)
    monkeypatch.setattr(module, "OrderedScoring", LooksHere)
    parts.begin(order=ORDER)
    combined = Scores("validation", {"math": DomainScore(1.0, 0.0, 2)}, [], "v", 5.0, 0.0, 0, 0)
    by: list[int] = []

    def combine(evaluator: RecordingEvaluator, *_: Any, **__: Any) -> Scores:
        by.append(parts.evaluators.index(evaluator))
        return combined

    monkeypatch.setattr(RecordingEvaluator, "combine", combine, raising=False)
    parts.scorer.keep(7, Standing("known", {3: item(3, "math", 1.0)}))
    for number in range(2):
        parts.step(number, 0.2 + 0.1 * number)
        parts.scorer.measured(7)
    assert by == [2, 0]  # the second while all are at work: nobody would free one for it
    parts.scorer.halt(1)
    parts.scorer.measured(7)
    assert by[2] == 2
    assert isinstance(parts.step(2, 0.4).found, Look), "the engines are free again"


def test_what_is_scored_beside_the_search_gets_all_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=4, per_candidate=2)
    recipe = parts.bank.recipe("model_soup", {})
    assert parts.scorer.score(recipe, "test").engines == (0, 1, 2, 3)
    model: Any = SimpleNamespace(digest=lambda: "specialist")
    measured = parts.scorer.score_checkpoint(model, model, "test", ["math"])
    assert (measured.engines, measured.merge_seconds) == ((0, 1, 2, 3), 0.0)
    assert [evaluator.loaded for evaluator in parts.evaluators] == [[recipe.digest, (model, model)]] * 4
    assert parts.asked == [(4, "test")] * 2


def test_engines_are_free_again_after_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    recipe = parts.bank.recipe("model_soup", {})
    with monkeypatch.context() as patch:
        patch.setattr(module, "grade_together", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                parts.scorer.score(recipe, "test")
    assert parts.scorer.score(recipe, "test").engines == (0, 1)


def test_a_candidate_is_scored_again_on_another_engine_where_one_was_lost(parts: Parts) -> None:
    parts.begin()
    parts.loses()
    found = parts.step(0, 0.5).found
    assert isinstance(found, Measurement)
    assert found.scores.domains["math"].score == 0.4
    assert len(parts.handles) == 2
    assert [len(one.actor.loaded) for one in parts.handles] == [1, 1]  # all is sent to the new one
    [line] = parts.said
    assert "engine 0 was lost (its process was killed or crashed)" in line
    assert " s" in line


def test_a_candidate_under_which_engines_are_lost_three_times_is_given_up_and_the_next_one_scored(
    parts: Parts, tmp_path: Path
) -> None:
    parts.begin()
    parts.loses(times=3)
    failed = parts.step(0, 0.5)
    assert isinstance(failed.found, GivenUp)
    assert "3 engines were lost while it was scored" in failed.found.reason
    assert isinstance(parts.step(1, 0.6).found, Measurement)
    again = Losses(tmp_path / "losses.jsonl", parts.said.append)
    assert again.given_up(failed.recipe.digest) == failed.found.reason, "a resume counts on"


def test_what_a_sweep_cannot_do_without_ends_it_in_one_line_where_engines_are_lost_under_it(parts: Parts) -> None:
    parts.loses(times=3)
    with pytest.raises(StoppedError, match="model_soup: cannot be scored: 3 engines"):
        parts.scorer.score(parts.bank.recipe("model_soup", {}), "test")


def test_what_ended_a_sweep_is_tried_anew_when_it_goes_on(parts: Parts, tmp_path: Path) -> None:
    recipe = parts.bank.recipe("model_soup", {})
    parts.loses(times=3)
    with pytest.raises(StoppedError, match="cannot be scored"):
        parts.scorer.score(recipe, "test")
    bank: Any = parts.bank
    resumed = CandidateScorer(bank, parts.supervisor, Losses(tmp_path / "losses.jsonl", parts.said.append))
    assert resumed.score(recipe, "test").engines == (0,)


def test_engines_of_a_candidate_that_is_given_up_between_two_looks_are_free(looked: Parts) -> None:
    digest = looked.step(0, 0.5).recipe.digest
    for _ in range(3):
        looked.losses.strike(digest, "under another candidate that is the same")
    assert isinstance(looked.step(0, 0.5).found, GivenUp)
    looked.scorer.begin(1, looked.bank.recipe("ties", {"density": 0.6}))
    step = looked.scorer.take(1, timeout=20)
    assert step is not None, "the engines were never given back"
    assert isinstance(step.found, Look)


def test_only_engines_that_took_the_weights_are_asked_where_one_was_replaced_meanwhile(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []
    up = threading.Event()
    parts.supervisor._say = lambda _line: up.set()

    def load(evaluator: RecordingEvaluator, manifest: str, places: Any) -> None:
        evaluator.loaded.append(manifest)
        with pytest.raises(LostError), parts.supervisor.watched((0,)):  # as by another thread that asks something
            raise EngineDiedError(parts, 0)
        assert up.wait(60)

    def answer(evaluators: Sequence[ActorHere], *_: Any) -> tuple[Scores, GradedItems]:
        asked.extend(one.actor.loaded for one in evaluators)
        return Scores("test", {}, [], "v", 1.0, 1.0, 10, 0), {}

    monkeypatch.setattr(RecordingEvaluator, "load", load)
    monkeypatch.setattr(module, "grade_together", answer)
    recipe = parts.bank.recipe("model_soup", {})
    parts.scorer.score(recipe, "test")
    assert (asked, len(parts.handles)) == ([[recipe.digest]], 2)


def test_an_engine_that_is_lost_beside_others_ends_no_candidate_of_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    parts.begin()
    parts.loses(index=1)
    parts.fails.insert(0, None)
    assert isinstance(parts.step(0, 0.2).found, Measurement)
    assert isinstance(parts.step(1, 0.4).found, Measurement)
    assert parts.scorer.score(parts.bank.recipe("model_soup", {}), "test").engines == (0, 1)


def test_an_engine_that_finds_no_place_is_waited_for_and_said(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.begin()
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([], refs))
    parts.loses()
    assert isinstance(parts.step(0, 0.5).found, Measurement)
    assert "engine 0 waits for a node with a place for it" in parts.said[0]


def test_an_engine_without_a_place_is_none_of_those_that_are_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    parts.begin()
    both, began = parts.supervisor.up, threading.Event()

    def wait(*_: Any) -> None:
        began.set()
        threading.Event().wait()

    monkeypatch.setattr(parts.supervisor, "_await_place", wait)
    with pytest.raises(LostError), parts.supervisor.watched((1,)):
        raise EngineDiedError(parts, 1)
    assert began.wait(60)
    assert (parts.supervisor.up, len(parts.supervisor.actors)) == (both[:1], 2)


def test_engines_that_share_a_device_take_the_place_of_others_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2, one_by_one=True)
    starts, overlaps, alone = list[int](), list[int](), threading.Lock()

    def prepare(_actor: ActorHere) -> None:
        if not alone.acquire(blocking=False):
            overlaps.append(1)
            return
        time.sleep(0.2)
        starts.append(1)
        alone.release()

    monkeypatch.setattr(parts.supervisor, "_prepare", prepare)
    for index in range(2):
        with pytest.raises(LostError), parts.supervisor.watched((index,)):
            raise EngineDiedError(parts, index)
    assert parts.supervisor.acquire(everything=True) == (0, 1)
    assert (len(starts), overlaps) == (2, [])


def test_no_engine_begins_once_they_have_ended(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, ended, done = threading.Event(), threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def dies(actor: ActorHere) -> None:
        waits.set()
        assert ended.wait(60)
        error = RayActorError()
        error.actor_id = actor.id
        raise error

    def fail(error: BaseException) -> None:
        failed.append(error)
        done.set()

    monkeypatch.setattr(parts.supervisor, "_prepare", dies)
    monkeypatch.setattr(parts.supervisor, "_fail", fail)
    with pytest.raises(LostError), parts.supervisor.watched((0,)):
        raise EngineDiedError(parts, 0)
    assert waits.wait(60)
    parts.supervisor.close()
    ended.set()
    assert done.wait(60)
    assert len(parts.handles) == 2, "another one began"
    assert isinstance(failed[0], StoppedError)


def dies(actor: ActorHere) -> None:
    error = RayActorError()
    error.actor_id = actor.id
    raise error


def test_the_search_ends_in_one_line_where_its_last_engine_is_lost_whenever_it_starts(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.begin()
    monkeypatch.setattr(parts.supervisor, "_prepare", dies)
    parts.loses()
    with pytest.raises(StoppedError, match=r"engine 0 failed to start 3 times in a row .* and no other is left"):
        parts.step(0, 0.5)
    assert len(parts.handles) == 4


def fails(_actor: ActorHere) -> None:
    raise RuntimeError("no memory left on the device")


@pytest.mark.parametrize(
    ("start", "reason"), [(dies, "its process was killed or crashed"), (fails, "RuntimeError: no memory left")]
)
@pytest.mark.parametrize("per_candidate", [1, 2])
def test_the_search_goes_on_with_the_other_engines_where_one_does_not_start_again(
    start: Any, reason: str, per_candidate: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2, per_candidate=per_candidate)
    parts.begin()
    monkeypatch.setattr(parts.supervisor, "_prepare", start)
    parts.loses()
    assert isinstance(parts.step(0, 0.5).found, Measurement)
    assert parts.scorer.score(parts.bank.recipe("model_soup", {}), "test").engines == (1,)
    [line] = parts.said
    assert line.startswith(f"engine 0 failed to start 3 times in a row ({reason}")
    assert line.endswith("the search goes on without it; see engine-0.log in the run's folder")


def test_a_search_begins_with_the_engines_that_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    supervisor = Supervisor(
        parts._start, lambda actor: dies(actor) if parts.handles.index(actor) != 3 else actor.actor, 2, 1, print
    )
    supervisor.begin()
    supervisor.wait()
    assert supervisor.acquire(everything=True) == (1,)


def test_an_engine_that_fails_at_its_first_start_ends_the_search_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path)
    supervisor = Supervisor(parts._start, fails, 2, 1, print)
    supervisor.begin()
    with pytest.raises(RuntimeError, match="no memory left"):
        supervisor.wait()


def test_an_error_that_no_loss_explains_reaches_whoever_takes_the_step(parts: Parts) -> None:
    parts.begin()
    parts.fails.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        parts.step(0, 0.5)
    assert len(parts.handles) == 1


def test_a_race_goes_on_from_where_a_go_began_where_its_engine_was_lost(
    looked: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked.step(0, 0.5)
    looked.scorer.halt(0)
    looked.scorer.go_on(0, 4)
    fails, before = [EngineDiedError(looked, 0)], LooksHere.next_look

    def next_look(self: LooksHere) -> Look:
        if fails:
            raise fails.pop()
        return before(self)

    monkeypatch.setattr(LooksHere, "next_look", next_look)
    found = looked.step(0, 0.5).found
    assert isinstance(found, Look)
    assert (found.count, list(found.items)) == (4, [0, 2])
    assert LooksHere.made == [(0, None), (2, 4), (2, 4)]
    _, standing = looked.scorer.halt(0)
    assert (list(standing.items), standing.cost.spent.seconds) == ([3, 1, 0, 2], 2.0)


def test_answers_that_were_fetched_count_where_the_engine_is_lost_before_it_is_halted(
    looked: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined = Scores("validation", {"math": DomainScore(1.0, 0.0, 2)}, [], "v", 5.0, 0.0, 0, 0)
    monkeypatch.setattr(RecordingEvaluator, "combine", lambda *_, **__: combined, raising=False)
    looked.step(0, 0.5)
    error = EngineDiedError(looked, 0)

    def finish(_self: LooksHere) -> None:
        raise error

    monkeypatch.setattr(LooksHere, "finish", finish)
    measured, standing = looked.scorer.halt(0)
    assert measured.scores == combined
    assert list(standing.items) == [3, 1]


def test_the_bank_of_these_tests_offers_what_a_bank_does() -> None:
    assert all(callable(getattr(Bank, name)) for name in vars(RecordingBank) if not name.startswith("_"))
