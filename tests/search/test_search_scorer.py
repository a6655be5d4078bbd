"""The scorer: what a suggestion comes to, what is measured again and what is not, which engines answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from made_up_search import item
from mergebench_ray.bank import Bank
from mergebench_ray.evaluation.graded import Spent
from mergebench_ray.evaluation.ordered_scoring import Look
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.standing import Cost, Standing
from mergebench_ray.weights.together import Together
from recorded_scorer import LooksHere, Parts, RecordingBank, RecordingEvaluator


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


def test_engines_of_a_candidate_know_which_others_of_their_node_load_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(monkeypatch, tmp_path, engines=4, per_candidate=4, nodes=["a", "b", "a", "c"])
    parts.begin()
    parts.step(0, 0.5)
    first, *alone, second = [parts.evaluators[index].together for index in (0, 1, 3, 2)]
    assert alone == [None, None]
    assert (first.others, first.is_first, second) == (1, True, Together(first.meeting, 1, False))


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
    parts.look(monkeypatch)
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


def test_the_bank_of_these_tests_offers_what_a_bank_does() -> None:
    assert all(callable(getattr(Bank, name)) for name in vars(RecordingBank) if not name.startswith("_"))
