from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mergebench_ray.config import SearchOptions
from mergebench_ray.errors import InputError
from mergebench_ray.search.study import is_new, open_storage, reconcile


def start_study(folder: Path) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    storage = open_storage(folder, SearchOptions())
    return storage, optuna.create_study(storage=storage, study_name="x", direction="maximize")


def test_the_study_lies_in_the_runs_folder(tmp_path: Path) -> None:
    storage, study = start_study(tmp_path)
    assert is_new(storage, "x")
    study.tell(study.ask(), 0.5)
    again = open_storage(tmp_path, SearchOptions())
    assert not is_new(again, "x")
    assert optuna.load_study(study_name="x", storage=again).best_value == 0.5


def test_a_trial_on_disk_that_the_study_was_not_told_of_is_told(tmp_path: Path) -> None:
    storage, study = start_study(tmp_path)
    trial = study.ask()
    trial.suggest_float("a", 0, 1)
    reconcile(storage, "x", {trial.number: 0.7})
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.trials[0].value == 0.7


def test_a_trial_that_had_only_begun_is_tried_again_with_the_same_numbers(tmp_path: Path) -> None:
    storage, study = start_study(tmp_path)
    trial = study.ask()
    number = trial.suggest_float("a", 0, 1)
    reconcile(storage, "x", {})
    assert study.trials[0].state == TrialState.FAIL
    assert study.ask().suggest_float("a", 0, 1) == number


def test_a_trial_that_was_called_failed_when_it_was_interrupted_is_tried_again_once(tmp_path: Path) -> None:
    storage, study = start_study(tmp_path)
    study.enqueue_trial({"a": 0.25})
    study.tell(study.ask(), state=TrialState.FAIL)
    reconcile(storage, "x", {})
    reconcile(storage, "x", {})
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert study.ask().suggest_float("a", 0, 1) == 0.25


def test_a_queued_point_that_had_not_suggested_yet_is_not_lost(tmp_path: Path) -> None:
    storage, study = start_study(tmp_path)
    study.enqueue_trial({"a": 0.25})
    study.ask()
    reconcile(storage, "x", {})
    assert study.ask().suggest_float("a", 0, 1) == 0.25


def test_a_storage_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.storage"):
        open_storage(tmp_path, SearchOptions(storage=f"sqlite:///{tmp_path}/no/such/folder/study.db"))
