"""Engines that are lost while candidates are scored: what is asked again, what is given up, what ends a sweep."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors_here import ActorHere
from mergebench_ray.errors import StoppedError
from mergebench_ray.evaluation.graded import GradedItems
from mergebench_ray.evaluation.ordered_scoring import Look
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.losses import Losses, LostError
from mergebench_ray.search.scorer import CandidateScorer, GivenUp, Measurement
from mergebench_ray.search.supervisor import Supervisor
from recorded_scorer import EngineDiedError, LooksHere, Parts, RecordingEvaluator


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


def test_a_candidate_under_which_whole_nodes_are_lost_is_given_up_too_but_not_for_those_that_were_taken_away(
    parts: Parts, tmp_path: Path
) -> None:
    parts.begin()
    parts.loses(times=9, preempted=True)
    parts.loses(times=5, node=True)
    assert isinstance(parts.step(0, 0.5).found, Measurement)
    parts.loses(times=4, node=True)
    parts.loses(times=1)
    failed = parts.step(1, 0.6)
    assert isinstance(failed.found, GivenUp)
    assert "5 engines were lost while it was scored, the last one since its process was" in failed.found.reason
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

    def load(evaluator: RecordingEvaluator, manifest: str, places: Any, _together: Any) -> None:
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


def test_no_merge_begins_while_another_engine_still_reads_where_one_was_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2, per_candidate=2)
    parts.begin()
    happened: list[Any] = []
    merge, fails = parts.bank.merge, [EngineDiedError(parts, 0)]

    def merged(recipe: Any) -> Any:
        happened.append("merge")
        return merge(recipe)

    def load(evaluator: RecordingEvaluator, _manifest: str, _places: Any, _together: Any) -> Any:
        return fails.pop() if fails else evaluator

    def wait(refs: list[Any], timeout: float | None) -> Any:
        if timeout is None:
            happened.append("lost" if isinstance(refs[0], EngineDiedError) else "has read")
        return refs, []

    monkeypatch.setattr(parts.bank, "merge", merged)
    monkeypatch.setattr(RecordingEvaluator, "load", load)
    monkeypatch.setattr(ray, "wait", wait)
    assert isinstance(parts.step(0, 0.5).found, Measurement)
    assert happened == ["merge", "lost", "has read", "merge", "has read", "has read"]


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
    with pytest.raises(StoppedError, match=r"and no other is left: see engine-0.log, start again$"):
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
    assert line.endswith("the others go on without it; see engine-0.log")


def test_a_search_begins_with_the_engines_that_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    supervisor = Supervisor(
        parts._start,
        lambda actor: dies(actor) if parts.handles.index(actor) != 3 else actor.actor,
        2,
        1,
        print,
        log="",
        remedy="",
    )
    supervisor.begin()
    supervisor.wait()
    assert supervisor.acquire(everything=True) == (1,)


def test_an_engine_that_fails_at_its_first_start_ends_the_search_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path)
    supervisor = Supervisor(parts._start, fails, 2, 1, print, log="", remedy="")
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
