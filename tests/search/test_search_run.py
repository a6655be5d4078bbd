"""What a search does around its race: nothing where nothing is left, and one process for all of Tune's trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from made_up_search import MadeUpScorer, MadeUpSearch
from mergebench_ray.search import run as module
from mergebench_ray.search.run import search
from mergebench_ray.search.study import open_storage
from mergebench_ray.search.trainable import CandidateTrial


def test_a_search_that_has_all_its_candidates_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"trials": 2, "race": {"kind": "none", "in_flight": 20}}
    before = MadeUpSearch(tmp_path, MadeUpScorer(), options)
    before.storage = open_storage(before.run, before.sweep.search)
    before.drive()
    monkeypatch.setattr(module, "StudySearch", lambda *_, **__: pytest.fail("a search began"))
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {})
    again = MadeUpSearch(tmp_path, MadeUpScorer(), options)
    search(
        *(again.sweep, again.space, again.session, again.store, again.records, again.run, again.options),
        again.budget,
        on_start=lambda _number: pytest.fail("a candidate began"),
        on_finish=again.finished.append,
        on_decision=again.decided.append,
        note=again.said.append,
    )
    assert again.finished == []


def test_a_trial_of_tune_stands_for_one_candidate_after_the_other() -> None:
    trial: Any = CandidateTrial.__new__(CandidateTrial)
    assert trial.step() == {}
    assert trial.reset_config({"density": 0.75})
