"""The search: Ray Tune asks Optuna for candidates, the scorer answers, each answer is kept before the next begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.config.race import RaceOptions
from mergebench_ray.errors import InputError
from mergebench_ray.placement import engines_per_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, proposed
from mergebench_ray.search import warm_start
from mergebench_ray.search.budget import RunBudget, UnderWay
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race_choice import order_of, race_of, race_of_run, raced_besides
from mergebench_ray.search.race_scheduler import RaceScheduler, StudySearch
from mergebench_ray.search.racing import Racing
from mergebench_ray.search.records import Records
from mergebench_ray.search.running_search import RunningSearch
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.session import Session
from mergebench_ray.search.space import Space
from mergebench_ray.search.starts import free_proposals
from mergebench_ray.search.study import RunStudy, open_storage
from mergebench_ray.search.trainable import METRIC, CandidateTrial

# What Tune writes by itself is not needed here: every trial is in the run's own store.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command line's business
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a step's result is the scheduler's business
}
_TRIAL_CPUS = 0.001  # a trial only waits for the scorer, but Tune refuses one without resources


class _Silent(TrialProgressCallback):
    """Takes the place of Tune's own, which prints a line for each trial that another's result has ended."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Nothing: the live view says it."""


def search(
    sweep: Sweep,
    space: Space,
    session: Session,
    store: TrialStore,
    records: Records,
    run: RunFolder,
    race: RaceOptions,
    budget: RunBudget,
    *,
    on_start: Callable[[int], None],
    on_finish: Callable[[Trial], None],
    on_decision: Callable[[Decision], None],
    note: Callable[[str], None],
) -> None:
    """Score candidates until the sweep has as many as it asks for, or pays, those of earlier sittings included.

    Args:
        sweep: the sweep.
        space: what may be tried.
        session: bank, engines and scorer.
        store: the run's trials.
        records: makes rows of measurements.
        run: the run's folder, which holds the study unless the sweep names another storage.
        race: which candidates are scored on, as `chosen_race` found.
        budget: ends the search before.
        on_start: called with a candidate's number when it begins.
        on_finish: called with its row when it is on disk.
        on_decision: called with a decision of the race when it is on disk.
        note: called with a line about candidates of other runs that it begins with, and where it ends before it has as
            many as it asks for.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goal = records.goal("validation")
    study = RunStudy(open_storage(run, sweep.search), run.study_name(sweep), run, *goal.objectives)
    said = warm_start.begin_with(run, store, records, study, space)
    for line in said:
        note(line)
    race = race_of_run(race, sweep, run)
    besides = raced_besides(store.trials())
    budget.begins_with(besides)
    expected = budget.expected(UnderWay())
    raced = race_of(race, sweep, run, store, goal, None if expected is None else expected + besides)
    order = None if raced is None else order_of(race, raced, on_gpus=bool(ray.cluster_resources().get("GPU")))
    session.scorer.begin_search(_known(store, records), order)

    def recipe_of(number: int) -> Recipe:
        trials = study.study.get_trials(deepcopy=False)
        if number >= len(trials):
            raise InputError(
                f"{run.decisions_file}: the study has no candidate {number}; restore the study, or start a new run "
                "with another --out"
            )
        return session.bank.recipe(*space.candidate(trials[number].params))

    sampler = search_sampler(sweep.search, space)
    most = budget.most_candidates
    running = RunningSearch(
        session=session,
        store=store,
        records=records,
        study=study,
        run=run,
        raced=raced,
        on_finish=on_finish,
        on_decision=on_decision,
    )
    racing = Racing(running, recipe_of)
    racing.restore(most + besides if sampler.all_tried(study.study) is None else 0)
    ended = proposed(store.trials())
    study.reconcile(ended)
    remaining = most - len(ended)
    if remaining <= 0:
        return
    points = space.points(sweep.search.points_to_evaluate)
    study.queue(points, free_proposals(sweep, space, session.bank))
    groups = sweep.engine.count // engines_per_candidate(sweep)
    scheduler = RaceScheduler(
        *(racing, session.scorer, recipe_of, groups, remaining),
        on_start=lambda came: on_start(len(ended) + came),
        pays=lambda going: budget.pays_another(racing.under_way(going)),
    )
    searcher = StudySearch(
        racing,
        scheduler,
        lambda: sampler.all_tried(study.study) is not None,
        space.suggest,
        metric=[f"{METRIC}_{place}" for place in range(len(goal.objectives))],
        mode=["max" if objective.direction == "maximize" else "min" for objective in goal.objectives],
        sampler=sampler,
        storage=study.storage,
        study_name=study.name,
    )
    if sampler.all_tried(study.study) is None:
        _drive(sweep, searcher, scheduler)
    if (all_there_are := sampler.all_tried(study.study)) is not None and all_there_are < most + besides:
        note(f"nothing is left to try: {all_there_are} candidates are all there are")


def _drive(sweep: Sweep, searcher: StudySearch, scheduler: RaceScheduler) -> None:
    """Let Tune run trials until the searcher says that it is through."""
    os.environ.update(_TUNE_SETTINGS)
    with tempfile.TemporaryDirectory(prefix="mergebench_ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(CandidateTrial, {"cpu": _TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is through: a trial that waits needs a process again
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=folder,
                verbose=0,
                callbacks=[_Silent()],
                failure_config=tune.FailureConfig(max_failures=-1),  # the scheduler counts
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if scheduler.error is not None:
                raise scheduler.error  # noqa: B904 (as it was before Tune made text of it)
            raise
    if not scheduler.has_all():
        raise RuntimeError("Ray Tune ended before the search did")


def _known(store: TrialStore, records: Records) -> list[str]:
    """Digests of the merges that were scored on all validation items."""
    items = records.items_digest("validation")
    return [
        trial.digest
        for trial in store.trials()
        if trial.items_digest == items
        and trial.split == "validation"
        and trial.method is not None
        and trial.role != "stopped"
    ]
