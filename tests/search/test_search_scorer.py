"""The objective: what a suggestion comes to, what is measured again and what is not, which engines answer."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from actors_here import ActorHere, fetch_here
from mergebench_ray.bank import Bank
from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.scorer import CandidateScorer
from mergebench_ray.search.space import Space

OBJECTIVE = NormalisedAverage(References({"math": DomainScore(0.8, 0.01, 64)}))


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
        return SimpleNamespace(manifest=recipe.digest, seconds=0.1)


class RecordingEvaluator:
    """Notes what is loaded into it."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def load(self, manifest: str) -> None:
        self.loaded.append(manifest)

    def load_checkpoint(self, checkpoint: str, base: str) -> None:
        self.loaded.append((checkpoint, base))


class Parts:
    """A scorer with its bank and engines; `score` is what any model scores in math."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engines: int = 1, per_candidate: int = 1) -> None:
        fetch_here(monkeypatch)
        monkeypatch.setattr(module, "score_together", self._answer)
        self.score = 0.4
        self.asked: list[tuple[int, str]] = []
        self.wait: threading.Barrier | None = None
        self.bank = RecordingBank()
        self.evaluators = [RecordingEvaluator() for _ in range(engines)]
        bank: Any = self.bank
        handles = [ActorHere(evaluator) for evaluator in self.evaluators]
        self.scorer = CandidateScorer(bank, handles, per_candidate)

    def _answer(self, evaluators: Sequence[ActorHere], split: str, domains: list[str] | None) -> Scores:
        if self.wait is not None:
            self.wait.wait(timeout=60)
        self.asked.append((len(evaluators), split))
        return Scores(split, {"math": DomainScore(self.score, 0.01, 64)}, [], "v", 1.0, 1.0, 10, 0)

    def begin(self, known: dict[str, float] | None = None) -> None:
        methods = {"ties": {"density": {"low": 0.1, "high": 0.9}}}
        sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods})
        self.scorer.begin_search(Space(sweep, ["math"], None), OBJECTIVE, known or {})


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(monkeypatch)


def suggestion(density: float) -> dict[str, Any]:
    return {"method": "ties", "ties.density": density}


def test_a_candidates_value_is_the_share_of_its_specialists_scores(parts: Parts) -> None:
    parts.begin()
    recipe, value = parts.scorer.evaluate(suggestion(0.5))
    assert value == pytest.approx(0.4 / 0.8)
    assert (recipe["method"], recipe["parameters"]["density"]) == ("ties", 0.5)
    assert parts.asked == [(1, "validation")]


def test_a_candidate_that_was_scored_is_neither_merged_nor_asked_again(parts: Parts) -> None:
    parts.begin()
    first = parts.scorer.evaluate(suggestion(0.5))
    parts.score = 0.7
    assert parts.scorer.evaluate(suggestion(0.5)) == first
    assert len(parts.bank.merged) == len(parts.asked) == 1
    assert parts.scorer.evaluate(suggestion(0.6))[1] == pytest.approx(0.7 / 0.8)


def test_a_candidate_of_an_earlier_sitting_has_the_value_that_was_kept(parts: Parts) -> None:
    parts.begin()
    digest = parts.bank.recipe(*parts.scorer._space.candidate(suggestion(0.5))).digest  # type: ignore[union-attr]
    parts.begin({digest: 0.9})
    assert parts.scorer.evaluate(suggestion(0.5))[1] == 0.9
    assert parts.asked == []
    assert parts.scorer.take(digest) is None


def test_a_measurement_is_handed_over_once(parts: Parts) -> None:
    parts.begin()
    recipe, _ = parts.scorer.evaluate(suggestion(0.5))
    digest = Recipe(**recipe).digest
    taken = parts.scorer.take(digest)
    assert taken is not None
    assert (taken.scores.domains["math"].score, taken.merge_seconds, taken.engines) == (0.4, 0.1, (0,))
    assert parts.scorer.take(digest) is None


def test_a_candidate_whose_score_is_no_number_has_no_value_and_its_measurement_is_kept(parts: Parts) -> None:
    parts.begin()
    parts.score = math.nan
    recipe, value = parts.scorer.evaluate(suggestion(0.5))
    assert math.isnan(value)
    assert parts.scorer.take(Recipe(**recipe).digest) is not None


def test_candidates_of_a_search_are_scored_at_once_each_on_engines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(monkeypatch, engines=4, per_candidate=2)
    parts.begin()
    parts.wait = threading.Barrier(2)  # broken after a minute, if the second candidate waits for the first
    with ThreadPoolExecutor(2) as pool:
        recipes = [recipe for recipe, _ in pool.map(parts.scorer.evaluate, map(suggestion, (0.2, 0.4)))]
    measured = [parts.scorer.take(Recipe(**recipe).digest) for recipe in recipes]
    assert sorted(one.engines for one in measured if one is not None) == [(0, 1), (2, 3)]
    assert all(len(evaluator.loaded) == 1 for evaluator in parts.evaluators)


def test_what_is_scored_beside_the_search_gets_all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(monkeypatch, engines=4, per_candidate=2)
    recipe = parts.bank.recipe("model_soup", {})
    assert parts.scorer.score(recipe, "test").engines == (0, 1, 2, 3)
    model: Any = "specialist"
    measured = parts.scorer.score_checkpoint(model, model, "test", ["math"])
    assert (measured.engines, measured.merge_seconds) == ((0, 1, 2, 3), 0.0)
    assert [evaluator.loaded for evaluator in parts.evaluators] == [[recipe.digest, ("specialist", "specialist")]] * 4
    assert parts.asked == [(4, "test")] * 2


def test_engines_are_free_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(monkeypatch, engines=2)
    recipe = parts.bank.recipe("model_soup", {})
    with monkeypatch.context() as patch:
        patch.setattr(module, "score_together", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                parts.scorer.score(recipe, "test")
    assert parts.scorer.score(recipe, "test").engines == (0, 1)


def test_the_bank_of_these_tests_offers_what_a_bank_does() -> None:
    assert all(callable(getattr(Bank, name)) for name in vars(RecordingBank) if not name.startswith("_"))
