"""The Optuna study of a run on disk, and how it goes on after an interruption."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from mergebench_ray.config import SearchOptions
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.search.storage import storage_error

_AGAIN = "tries again"  # of a queued trial: number of the one whose numbers it has


def open_storage(run: RunFolder, options: SearchOptions) -> optuna.storages.RDBStorage:
    """The study's storage: SQLite in the run's folder, or what the sweep names.

    Raises:
        InputError: if the storage cannot be opened.
    """
    url = options.storage or f"sqlite:///{run.study_file}"
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:
        raise storage_error(url, error) from error


def reconcile(storage: optuna.storages.BaseStorage, name: str, recorded: Mapping[int, float]) -> None:
    """Bring a study in line with the trials on disk, so that none is lost and none repeated.

    A trial that was on disk when everything was killed is told to the study. One that had only begun, or that Tune
    called failed when it was interrupted, is queued to be tried again with the same numbers, once. So the study must be
    one run's own: what another run is trying would be called failed, and queued a second time.

    Args:
        storage: the study's storage.
        name: the study's name.
        recorded: Optuna trial number -> value, of all trials on disk; NaN for one without, which counts as failed.
    """
    if name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False)
    tried_again = {trial.user_attrs.get(_AGAIN) for trial in trials}
    for trial in trials:
        if trial.number in recorded:
            if trial.state == TrialState.RUNNING:
                value = recorded[trial.number]
                known = math.isfinite(value)
                study.tell(trial.number, value if known else None, None if known else TrialState.FAIL)
            continue
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state != TrialState.FAIL or trial.number in tried_again:
            continue
        study.enqueue_trial(trial.params or _fixed(trial), user_attrs={_AGAIN: trial.number})


def is_new(storage: optuna.storages.BaseStorage, name: str) -> bool:
    """Whether the storage holds no trial of this study yet, not even a queued one."""
    if name not in optuna.get_all_study_names(storage):
        return True
    return not optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def _fixed(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Numbers that a queued trial was to get, where it had begun without suggesting any."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return fixed
