"""The model of a sweep agrees with what can be reckoned by hand, and with the scorer that a sweep runs with."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors_here import ActorHere
from mergebench_ray.config import Recipe
from mergebench_ray.evaluation.graded import GradedItems
from mergebench_ray.placement.simulated import Steps, simulate
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.losses import Losses
from mergebench_ray.search.scorer import CandidateScorer, Measurement
from mergebench_ray.search.supervisor import Supervisor

MERGE, LOAD, ANSWER = 0.02, 0.02, 0.2


def test_one_engine_does_everything_one_after_the_other() -> None:
    found = simulate([Steps(propose=1, swap=2, answer=7)] * 5, 1)
    assert found.seconds == pytest.approx(50)
    assert found.efficiency == pytest.approx(0.7)


def test_engines_that_do_not_wait_for_each_other_compute_nearly_all_the_time() -> None:
    found = simulate([Steps(propose=0.01, swap=0.01, answer=10)] * 80, 8)
    assert 0.97 < found.efficiency < 1


def test_many_engines_wait_for_the_one_output_of_the_bank() -> None:
    found = simulate([Steps(propose=0, swap=1, answer=10)] * 1000, 100)
    assert found.seconds == pytest.approx(1000 + 10)
    assert found.efficiency == pytest.approx(10 * 1000 / (100 * 1010))


class SleepingBank:
    """Takes as long as it is told for a merge."""

    def recipe(self, density: float) -> Recipe:
        models = {"base": "b", "base_digest": "c", "specialists": {"math": "s"}, "specialist_digests": {"math": "d"}}
        return Recipe.model_validate({"method": "ties", "parameters": {"density": density}, **models})

    def merge(self, recipe: Recipe) -> Any:
        began = time.perf_counter()
        time.sleep(MERGE)
        return SimpleNamespace(manifest=recipe.digest, seconds=time.perf_counter() - began, places=())


class SleepingEngine:
    """Takes as long as it is told for a load."""

    def is_there(self) -> None:
        pass

    def start(self) -> None:
        pass

    def load(self, _manifest: str, _places: Any, _others: Any = None) -> None:
        time.sleep(LOAD)


@pytest.mark.slow
@pytest.mark.parametrize("engines", [1, 2, 3])
def test_the_model_agrees_with_a_scorers_own_wall_time(
    engines: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scorer and supervisor are real; bank and engines sleep. The model is fed with what each candidate took."""
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda _actor: None)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    lengths = itertools.cycle([0.5, 1.5, 1.0])

    def answer(_engines: Sequence[ActorHere], split: str, _domains: Any, _known: Any) -> tuple[Scores, GradedItems]:
        time.sleep(ANSWER * next(lengths))
        return Scores(split, {"math": DomainScore(0.4, 0.01, 64)}, [], "v", 1.0, 1.0, 10, 0), {}

    monkeypatch.setattr(module, "grade_together", answer)
    bank: Any = SleepingBank()
    supervisor: Any = Supervisor(
        lambda _index: ActorHere(SleepingEngine()),
        lambda actor: actor.actor,
        engines,
        1,
        lambda _line: None,
        log="",
        remedy="",
    )
    supervisor.begin()
    supervisor.wait()
    scorer = CandidateScorer(bank, supervisor, Losses(tmp_path / "losses.jsonl", lambda _line: None))
    scorer.begin_search([], None)
    numbers, found = iter(range(18)), dict[int, Measurement]()
    ready = threading.Lock()

    def work() -> None:
        while True:
            with ready:
                number = next(numbers, None)
            if number is None:
                return
            scorer.begin(number, bank.recipe(0.1 + number / 100))
            step = scorer.take(number)
            assert step is not None
            assert isinstance(step.found, Measurement)
            found[number] = step.found

    threads = [threading.Thread(target=work) for _ in range(engines)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    steps = [
        Steps(propose=0, swap=one.merge_seconds + one.load_seconds, answer=one.score_seconds)
        for _, one in sorted(found.items())
    ]
    assert len(steps) == 18
    assert simulate(steps, engines).seconds == pytest.approx(seconds, rel=0.1)
