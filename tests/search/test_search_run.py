"""What the driver of a search keeps of each candidate, in the order in which they finish."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors_here import ActorHere, fetch_here
from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, TrialStore
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import run as module
from mergebench_ray.search.records import Records
from mergebench_ray.search.run import KeepTrials, candidates, search
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.space import OPTUNA_NUMBER
from mergebench_ray.search.trainable import METRIC, RECIPE, CandidateTrial


class RecordingScorer:
    """Has a measurement for each candidate that was scored since it was asked last."""

    def __init__(self) -> None:
        self.finished: dict[str, Measurement] = {}

    def take(self, digest: str) -> Measurement | None:
        return self.finished.pop(digest, None)

    def evaluate(self, suggestion: dict[str, Any]) -> tuple[dict[str, Any], float]:
        return recipe(suggestion["density"]).model_dump(), suggestion["density"]


def recipe(density: float) -> Recipe:
    return Recipe(
        method="ties",
        parameters={"density": density, "scaling_coef": {"math": 0.4}},
        base="b",
        base_digest="c",
        specialists={"math": "s"},
        specialist_digests={"math": "d"},
    )


class Driver:
    """The store, and the callback that fills it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fetch_here(monkeypatch)
        self.store = TrialStore(folder)
        self.store.append(
            Trial("specialist", "math", "validation", "d", "i", domains={"math": DomainScore(0.8, 0.01, 64)})
        )
        self.scorer = RecordingScorer()
        self.session: Any = SimpleNamespace(
            domains=["math"],
            specialists={"math": None},
            engine_dtype="float32",
            items_digest=lambda split, domains: "items",
            scorer=ActorHere(self.scorer),
        )
        self.records = Records(self.session, self.store, lambda _text: None)
        self.begun: list[int] = []
        self.ended: list[Trial] = []
        self.described: list[Trial] = []
        study: Any = SimpleNamespace(describe=self.described.append)
        self.keep = KeepTrials(self.session, self.store, self.records, study, self.begun.append, self.ended.append)

    def start(self, number: int) -> Any:
        trial = SimpleNamespace(trial_id=f"t{number}", config={OPTUNA_NUMBER: number})
        self.keep.on_trial_start(0, [], trial)
        return trial

    def finish(self, trial: Any, density: float, score: float | None) -> None:
        """With a score where the scorer measured it, without where it knew it already."""
        found = recipe(density)
        if score is not None:
            scores = Scores("validation", {"math": DomainScore(score, 0.01, 64)}, [], "v", 2.0, 1.5, 100, 0)
            self.scorer.finished[found.digest] = Measurement(scores, 0.1, 0.2, 2.0, (0,))
        self.keep.on_trial_result(1, [], trial, {RECIPE: found.model_dump(), METRIC: 0.0})


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


def test_a_candidate_is_on_disk_with_its_scores_before_anyone_hears_of_it(driver: Driver, tmp_path: Path) -> None:
    driver.finish(driver.start(7), 0.5, 0.4)
    (row,) = candidates(TrialStore(tmp_path))
    assert [row] == driver.ended == driver.described
    assert (row.number, row.optuna_number, row.name, row.digest) == (0, 7, "ties", recipe(0.5).digest)
    assert row.normalised_average == pytest.approx(0.5)
    assert (row.tokens, row.merge_seconds, row.coefficients) == (100, 0.1, {"math": 0.4})
    assert row.started is not None
    assert row.started <= datetime.now(UTC)


def test_a_candidate_that_was_scored_before_is_a_row_of_its_own_that_took_nothing(driver: Driver) -> None:
    driver.finish(driver.start(0), 0.5, 0.4)
    driver.finish(driver.start(1), 0.5, None)
    first, second = candidates(driver.store)
    assert (second.digest, second.normalised_average) == (first.digest, first.normalised_average)
    assert (second.number, second.optuna_number, second.tokens, second.score_seconds) == (1, 1, 0, 0.0)


def test_candidates_are_numbered_as_they_finish(driver: Driver) -> None:
    slow, quick = driver.start(0), driver.start(1)
    driver.finish(quick, 0.3, 0.4)
    driver.finish(slow, 0.6, 0.2)
    assert [(row.number, row.optuna_number) for row in candidates(driver.store)] == [(0, 1), (1, 0)]
    assert driver.begun == [0, 0]


def test_a_candidate_that_the_scorer_knew_and_nobody_kept_is_an_error(driver: Driver) -> None:
    with pytest.raises(AssertionError, match="knew a candidate that is not stored"):
        driver.finish(driver.start(0), 0.5, None)


def test_a_search_that_has_all_its_candidates_starts_nothing(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.finish(driver.start(0), 0.5, 0.4)
    monkeypatch.setattr(module, "OptunaSearch", lambda *_, **__: pytest.fail("a search began"))
    content = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {}}, "search": {"trials": 1}}
    space: Any = None
    search(
        Sweep.model_validate(content),
        space,
        driver.session,
        driver.store,
        driver.records,
        RunFolder(tmp_path),
        on_start=driver.begun.append,
        on_finish=driver.ended.append,
    )
    assert len(driver.ended) == 1


def test_a_trial_of_tune_hands_each_suggestion_to_the_scorer_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_here(monkeypatch)
    trial: Any = CandidateTrial.__new__(CandidateTrial)
    trial.setup({"density": 0.25}, evaluate=RecordingScorer().evaluate)
    first = trial.step()
    assert (first[METRIC], first[RECIPE]["parameters"]["density"], first["done"]) == (0.25, 0.25, True)
    assert trial.reset_config({"density": 0.75})
    assert trial.step()[METRIC] == 0.75
