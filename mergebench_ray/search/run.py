"""The search: Ray Tune asks Optuna for candidates, the scorer answers, each answer is kept before the next begins."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.placement import engines_per_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, TrialStore, is_known
from mergebench_ray.search.records import Records, repeated
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.scorer import CandidateScorer
from mergebench_ray.search.session import Session
from mergebench_ray.search.space import OPTUNA_NUMBER, Space
from mergebench_ray.search.study import RunStudy, open_storage
from mergebench_ray.search.trainable import METRIC, RECIPE, CandidateTrial

# What Tune writes by itself is not needed here: every trial is in the run's own store.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command line's business
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
_TRIAL_CPUS = 0.001  # a trial only waits for the scorer, but Tune refuses one without resources


class KeepTrials(tune.Callback):
    """Writes each finished candidate to the store, in the driver, before Tune asks for the next one."""

    def __init__(
        self,
        session: Session,
        store: TrialStore,
        records: Records,
        study: RunStudy,
        on_start: Callable[[int], None],
        on_finish: Callable[[Trial], None],
    ) -> None:
        self._session, self._store, self._records, self._study = session, store, records, study
        self._on_start, self._on_finish = on_start, on_finish
        self._started: dict[str, datetime] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own way of resuming, which is not used here.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note when the candidate began."""
        self._started[trial.trial_id] = datetime.now(UTC)
        self._on_start(len(candidates(self._store)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store the candidate."""
        recipe = Recipe(**result[RECIPE])
        names: dict[str, Any] = {
            "role": "candidate",
            "name": recipe.method,
            "number": len(candidates(self._store)),
            "optuna_number": trial.config[OPTUNA_NUMBER],
        }
        measurement = ray.get(self._session.scorer.call(CandidateScorer.take, recipe.digest))
        started = self._started.pop(trial.trial_id, datetime.now(UTC))
        if measurement is not None:
            role, name = names.pop("role"), names.pop("name")
            row = self._records.trial(role, name, "validation", recipe, measurement, started, **names)
            self._store.append(row, measurement.scores.items)
        else:
            before = self._store.find(recipe.digest, self._records.items_digest("validation"), "validation")
            assert before is not None, "the scorer knew a candidate that is not stored"
            row = repeated(before, **names)
            self._store.append(row)
        self._study.describe(row)
        self._on_finish(row)


class StudySearch(OptunaSearch):
    """Tune's Optuna, which leaves a trial under way at an interruption as it is: it will be tried again."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study what was scored; a candidate without a value has failed."""
        if result and result.get("done"):
            known = is_known(result[METRIC])
            super().on_trial_complete(trial_id, result if known else None, error=not known)

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for Tune's own way of resuming, which is not used here: the study is on disk."""
        Path(checkpoint_path).touch()


def search(
    sweep: Sweep,
    space: Space,
    session: Session,
    store: TrialStore,
    records: Records,
    run: RunFolder,
    *,
    on_start: Callable[[int], None],
    on_finish: Callable[[Trial], None],
) -> None:
    """Score candidates until the sweep has as many as it asks for, those of earlier sittings included.

    Args:
        sweep: the sweep.
        space: what may be tried.
        session: bank, engines and scorer.
        store: the run's trials.
        records: makes rows of measurements.
        run: the run's folder, which holds the study unless the sweep names another storage.
        on_start: called with a candidate's number when it begins.
        on_finish: called with its row when it is on disk.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    done = candidates(store)
    objective = records.goal("validation").objective
    study = RunStudy(open_storage(run, sweep.search), run.study_name(sweep), run, objective)
    study.reconcile(done)
    remaining = sweep.search.trials - len(done)
    if remaining <= 0:
        return
    items = records.items_digest("validation")
    known = {
        trial.digest: _value(trial)
        for trial in store.trials()
        if trial.items_digest == items and trial.split == "validation" and trial.method is not None
    }
    ray.get(session.scorer.call(CandidateScorer.begin_search, space, objective, known))
    study.queue(space.points(sweep.search.points_to_evaluate))
    searcher = StudySearch(
        space.suggest,
        metric=METRIC,
        mode="max" if objective.direction == "maximize" else "min",
        sampler=search_sampler(sweep.search, space),
        storage=study.storage,
        study_name=study.name,
    )
    trainable = tune.with_parameters(CandidateTrial, evaluate=session.scorer.method(CandidateScorer.evaluate))
    os.environ.update(_TUNE_SETTINGS)
    # What Tune warns of could leak is the session's, which ends with the block it is in.
    warnings.filterwarnings("ignore", "fail_fast='raise' detected")
    with tempfile.TemporaryDirectory(prefix="mergebench_ray-tune-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": _TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=remaining,
                max_concurrent_trials=sweep.engine.count // engines_per_candidate(sweep),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=folder,
                verbose=0,
                callbacks=[KeepTrials(session, store, records, study, on_start, on_finish)],
                failure_config=tune.FailureConfig(fail_fast="raise"),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()


def candidates(store: TrialStore) -> list[Trial]:
    """The candidates scored on validation so far, in their order."""
    return [trial for trial in store.trials() if trial.role == "candidate" and trial.split == "validation"]


def _value(trial: Trial) -> float:
    """The objective; NaN for a trial whose scores cannot be normalised."""
    value = trial.objective.value
    return math.nan if value is None else value
