"""The race's scheduler and searcher in a loop that does with trials what Tune does, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.searcher import Searcher

from made_up_search import MadeUpScorer, MadeUpSearch
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import searched
from mergebench_ray.search import run as search_run
from mergebench_ray.search.race_scheduler import RaceScheduler, StudySearch

OPTIONS = {"trials": 10, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 4}}


def tune_here(_sweep: Any, searcher: StudySearch, scheduler: RaceScheduler) -> None:
    """Adds trials that the searcher proposes, runs new ones and those that the scheduler chooses, to the end."""
    trials: list[Any] = []

    def complete(trial: Any) -> None:
        trial.status = TuneTrial.TERMINATED
        searcher.on_trial_complete(trial.trial_id)

    def pause(trial: Any, should_checkpoint: bool) -> None:
        trial.status = TuneTrial.PAUSED

    controller = SimpleNamespace(pause_trial=pause, stop_trial=complete)
    while (suggestion := searcher.suggest(f"t{len(trials)}")) != Searcher.FINISHED:
        if suggestion is None:
            if (chosen := scheduler.choose_trial_to_run(controller)) is not None:
                chosen.status = TuneTrial.RUNNING
        else:
            trial: Any = SimpleNamespace(trial_id=f"t{len(trials)}", config=suggestion, status=TuneTrial.PENDING)
            trial.set_status = lambda status, trial=trial: setattr(trial, "status", status)
            trial.init_local_path = lambda: None
            trials.append(trial)
            scheduler.on_trial_add(controller, trial)
            if trial.status == TuneTrial.PENDING:
                trial.status = TuneTrial.RUNNING
        for trial in trials:
            if trial.status == TuneTrial.RUNNING and scheduler.on_trial_result(controller, trial, {}) == scheduler.STOP:
                complete(trial)
        assert len(trials) < 100


def scheduled(folder: Path, options: Any = OPTIONS, **other: Any) -> MadeUpSearch:
    """A search that the scheduler drives."""
    one = MadeUpSearch(folder, MadeUpScorer(), options, **other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_run, "_drive", tune_here)
        patch.setattr(ray, "cluster_resources", dict)
        search_run.search(
            *(one.sweep, one.space, one.session, one.store, one.records, one.run, one.options, one.budget),
            on_start=one.started.append,
            on_finish=one.finished.append,
            on_decision=one.decided.append,
            note=one.said.append,
        )
    return one


def table(folder: Path) -> list[Any]:
    return [
        (one.role, one.number, one.parameters, one.domains, one.objectives, one.estimate, one.reused_from)
        for one in searched(TrialStore(folder).trials())
    ]


@pytest.mark.slow
def test_what_the_scheduler_drives_is_what_a_plain_loop_drives(tmp_path: Path) -> None:
    scheduled(tmp_path / "scheduled")
    MadeUpSearch(tmp_path / "plain", MadeUpScorer(), OPTIONS).drive()
    assert table(tmp_path / "scheduled") == table(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("first", [{"kind": "pool", "survivors": 4, "p": 0.5}, OPTIONS["race"]])
def test_candidates_whose_first_items_another_run_knows_wait_without_an_engine(tmp_path: Path, first: Any) -> None:
    MadeUpSearch(tmp_path / "a", MadeUpScorer(), OPTIONS | {"race": first}).drive()
    (tmp_path / "a" / "sweep.yaml").touch()
    for name in ("scheduled", "plain"):
        shutil.copytree(tmp_path / "a", tmp_path / name / "a")
    plain = MadeUpSearch(tmp_path / "plain" / "b", MadeUpScorer(), OPTIONS, reuses=True)
    plain.drive()
    one = scheduled(tmp_path / "scheduled" / "b", reuses=True)
    assert table(tmp_path / "scheduled" / "b") == table(tmp_path / "plain" / "b")
    assert all(row.reused_from for row in searched(one.store.trials()))
    assert one.scorer.asked == plain.scorer.asked < 10 * 120 / 4
