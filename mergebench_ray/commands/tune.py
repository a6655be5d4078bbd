"""A coefficient search, from the sweep file to the report."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mergebench_ray.commands.best_model import record_of, write_best, write_front
from mergebench_ray.commands.budget import running_budget
from mergebench_ray.commands.first_checks import checked_run
from mergebench_ray.commands.live import LiveView
from mergebench_ray.commands.plan import (
    check_gpus_wanted,
    cluster_of,
    does_not_fit,
    lies_elsewhere,
    plan_of,
    plan_of_headers,
)
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.commands.ready_sweep import ReadySweep, earlier_runs, find_taken, make_ready
from mergebench_ray.commands.run_log import log_to
from mergebench_ray.commands.started_run import Startable
from mergebench_ray.commands.tune_result import TuneResult, summary
from mergebench_ray.commands.unusable_specialists import explanation
from mergebench_ray.config import Sweep
from mergebench_ray.config.budget import MOST_CANDIDATES
from mergebench_ray.config.objective import KNEE
from mergebench_ray.errors import InputError
from mergebench_ray.files import is_full_disk
from mergebench_ray.judges.judges import running_judges
from mergebench_ray.methods import get_method, parse_parameters
from mergebench_ray.placement import Placement, Plan
from mergebench_ray.placement.clusters import running_cluster
from mergebench_ray.placement.starting import reserved
from mergebench_ray.report.pages import write_report
from mergebench_ray.runs.items import write_questions
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.leaderboard import (
    best_candidate,
    best_of_each_method,
    by_choice,
    front,
)
from mergebench_ray.runs.opening import begin_again, check_same_items, locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, proposed, unusable_specialists
from mergebench_ray.runtime import ray_session
from mergebench_ray.search import warm_start
from mergebench_ray.search.budget import RunBudget, UnderWay
from mergebench_ray.search.callbacks import Callback, Callbacks, check_callbacks
from mergebench_ray.search.earlier_items import EarlierItems, answer_conditions
from mergebench_ray.search.finals import choose_by, hold_finals, note_differences, reopen
from mergebench_ray.search.records import AVERAGE_MERGE, SIMPLE_MERGE, Records, versions_of
from mergebench_ray.search.run import search
from mergebench_ray.search.session import Session, open_session
from mergebench_ray.search.study import open_storage
from mergebench_ray.tasks.questions import question_rows
from mergebench_ray.tasks.scored_task import items_digest
from mergebench_ray.watching.watch import Watch, watching

_JUDGE_REMEDY = "see its log in the run's folder, give it more memory, and go on with the same command and --resume"


@Startable
def tune(
    sweep: Path | str | Sweep,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    dashboard_port: int | None = None,
    show_progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TuneResult:
    """Search for the best merge.

    Every finished trial is on disk before the next begins. At the end the best candidate on validation is written as a
    model and scored on test, beside the references, and the report is made.

    Args:
        sweep: a sweep, the path of its file, or its name where it ships.
        out: the run's folder; None for runs/NAME.
        resume: go on with the run in `out`.
        overrides: dotted keys of the file and the values to use instead.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        dashboard_port: show Ray's dashboard on this loopback port.
        show_progress: show a live view on a terminal and in a notebook, plain lines elsewhere; None for
            nothing elsewhere.
        callbacks: are told of each candidate's end and each decision of the race; what fails in one does not end the
            search.

    Raises:
        InputError: wrong input, found before anything is started.
    """
    began = datetime.now(UTC)
    check_callbacks(callbacks)
    checked, folder = checked_run(sweep, overrides, out, resume=resume, address=address, dashboard_port=dashboard_port)
    if lies_elsewhere(checked):
        _require_fit(plan_of_headers(checked, cluster_of(address)))  # before weights are fetched
    ready = make_ready(checked, RunFolder(folder))
    tasks = ready.tasks
    cluster = cluster_of(address)  # only now, when what an earlier run of this process held is given back
    _require_fit(plan_of(ready, cluster))
    check_gpus_wanted(checked, cluster)
    with progress_line(show_progress) as report:
        ready.models.fetch(report)
    if checked.search.storage is not None:
        open_storage(RunFolder(folder), checked.search)  # makes its tables, before there is a folder
    with (
        locked_run(folder, checked, resume=resume) as run,
        log_to(run.log_file, checked.search.storage),
        _full_disk_explained(run),
    ):
        open_storage(run, checked.search)
        store = TrialStore(run.path)
        if unusable_specialists(store.trials()):
            # What was mended may be in a task's own functions, of which no digest knows.
            begin_again(run, checked)
            store = TrialStore(run.path)
        items, as_earlier = (
            {split: items_digest(some, directions=directions) for split, some in tasks.items()}
            for directions in (True, False)
        )
        check_same_items(run.path, store.trials(), items, as_earlier)
        _check_same_models(run.path, store.trials(), ready)
        choose_by(store, checked.search.choice or KNEE)
        gone: list[str] = []
        if checked.search.warm_start and not run.warm_start_file.exists():
            gone = warm_start.keep(run, ready.taken if ready.taken is not None else find_taken(ready, run.path)[0])
        for split, some in tasks.items():
            write_questions(run.path, split, list(question_rows(some)))
        JsonLines(run.decisions_file).read()  # damaged, it is refused before anything starts
        Sittings(run).check()
        with LiveView(checked.name, _known_candidates(checked), show=show_progress) as view:
            for note in (*ready.task_notes, *ready.search_notes, *gone):
                view.phase(note)
            if ready.calibration is not None:
                ready.calibration.report_to(lambda _fraction, text: view.phase(text))
            try:
                with (
                    watching(checked, run, store, view.note) as watch,
                    ray_session(address, dashboard_port=dashboard_port),
                ):
                    plan = plan_of(ready, running_cluster())
                    run.write_plan(plan)
                    placement = _require_fit(plan)
                    for note in plan.cluster.notes:
                        view.phase(note)
                    with running_budget(ready, run, store, began, placement.gpus) as budget:
                        result = _run(
                            ready, placement, run, store, budget, view, watch, Callbacks(callbacks, view.note)
                        )
                    watch.won(result.test)
            except BaseException as error:
                has_report = _keep_what_is_there(error, run, store, view)
                if isinstance(error, InputError) and unusable_specialists(store.trials()):
                    answers = f"; all answers are in {run.report_file}" if has_report else ""
                    raise InputError(f"{error}; go on with the same command and --resume{answers}") from error
                raise
            try:
                write_report(run.path)
            finally:
                view.finished(summary(result, run, checked.search.budget))
    return result


def _require_fit(plan: Plan) -> Placement:
    if plan.placement is None:
        raise InputError(does_not_fit(plan))
    return plan.placement


def _known_candidates(sweep: Sweep) -> int | None:
    """How many candidates will come; None where a budget says it."""
    most = sweep.search.most_candidates
    return None if most == MOST_CANDIDATES else most


def _check_same_models(folder: Path, trials: Sequence[Trial], ready: ReadySweep) -> None:
    """Refuse to go on where base or specialists, or what a specialist was asked, are not those that were scored.

    Raises:
        InputError: naming the model.
    """
    for trial in trials:
        if trial.role not in ("base", "specialist"):
            continue  # made of those, whose digests its recipe holds
        own = trial.role == "specialist"
        checkpoint = ready.models.specialists[trial.name] if own else ready.models.base
        tasks = [one for one in ready.tasks[trial.split] if not own or one.domain == trial.name]
        if (trial.digest, trial.items_digest) != (checkpoint.digest(), items_digest(tasks)):
            raise InputError(
                f"{folder}: {trial.name} was scored on {trial.split} with other weights or items than there are now; "
                "undo the change, or start a new run with another --out"
            )


def _run(
    ready: ReadySweep,
    placement: Placement,
    run: RunFolder,
    store: TrialStore,
    budget: RunBudget,
    view: LiveView,
    watch: Watch,
    callbacks: Callbacks,
) -> TuneResult:
    sweep, models, space = ready.sweep, ready.models, ready.space

    def report(_fraction: float, text: str) -> None:
        view.phase(text)

    def finished(trial: Trial) -> None:
        best = best_candidate(store.trials())
        view.trial_finished(trial, best)
        watch.finished(trial, best)
        watch.moved(session.bank.bytes_moved)
        callbacks.on_trial(trial)

    def lost(line: str) -> None:
        view.note(line)
        watch.failed()

    warm_up = [AVERAGE_MERGE, SIMPLE_MERGE, *_one_of_each(space.corners())]
    for note in models.notes:
        view.note(note)
    with (
        reserved(placement) as places,
        running_judges(
            models.judges, sweep.engine, run.judge_log, places.all_of("judge"), remedy=_JUDGE_REMEDY
        ) as judges,
        open_session(
            *(sweep, ready.suite, models.base, models.specialists, warm_up, run, ready.calibration, judges, report),
            *(placement, places),
            note=lost,
        ) as session,
    ):
        view.phase(f"vLLM started in {session.engine_start_seconds:.0f} s")
        view.phase(session.engine_proof)
        conditions = answer_conditions(
            *(session.base, ready.suite, sweep.engine, versions_of(session), models.judges.values()),
            weak_sandbox=sweep.evaluation.allow_weak_sandbox,
        )
        earlier = EarlierItems(earlier_runs(sweep, run), ready.tasks, conditions, view.note)
        records = Records(session, store, view.phase, sweep.search, earlier)
        check = functools.partial(_check_budget, ready, records, budget, run)
        records.references("validation", between=check)
        check()
        ended = len(proposed(store.trials()))
        if ended < budget.most_candidates:
            reopen(store)
        view.search_begins(ended, budget.expected(UnderWay()) if sweep.search.budget else None)
        search(
            sweep,
            space,
            session,
            store,
            records,
            run,
            ready.race,
            budget,
            on_start=view.trial_started,
            on_finish=finished,
            on_decision=callbacks.on_decision,
            note=view.note,
        )
        return _finish(session, records, store, ready, run, view)


def _check_budget(ready: ReadySweep, records: Records, budget: RunBudget, run: RunFolder) -> None:
    if ready.sweep.search.budget is not None and not run.decisions_file.exists():  # older runs do not say otherwise
        budget.check(records.left_of_references(ready.domain_items))


def _one_of_each(corners: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """One corner for each pass to compile; another reduction or density of the same method would prepare nothing more.

    Statistics that do depend on hyper-parameters are made when a candidate needs them.
    """
    passes: dict[Any, tuple[str, dict[str, Any]]] = {}
    for method, parameters in corners:
        kernel = get_method(method).kernel(parse_parameters(method, parameters))
        passes.setdefault((method, kernel.options), (method, parameters))
    return list(passes.values())


def _keep_what_is_there(error: BaseException, run: RunFolder, store: TrialStore, view: LiveView) -> bool:
    """Say how to go on, keep why in the run's log, and report on the trials that were finished.

    Returns:
        whether the report was written.
    """
    if isinstance(error, KeyboardInterrupt):
        view.finished([f"finished trials are kept: go on with the same command and --resume, in {run.path}"])
    elif isinstance(error, InputError):
        # What a search in the background prints is lost with the process that began it.
        logging.getLogger(__name__).error("the run stopped: %s", error)
        if unusable_specialists(store.trials()):
            view.finished(explanation(run.path, store.trials()))
    else:
        logging.getLogger(__name__).error("the run stopped", exc_info=error)
    if store.trials():
        with suppress(Exception):
            write_report(run.path)
            return True
    return False


def _finish(
    session: Session, records: Records, store: TrialStore, ready: ReadySweep, run: RunFolder, view: LiveView
) -> TuneResult:
    """Score references and the best candidate of each method on test, and write the best as a model."""
    records.references(*(split for split in ready.sweep.evaluation.splits if split != "validation"))
    if "final" in ready.sweep.evaluation.splits:
        hold_finals(records, store, session.bank, view.phase)
    best = best_candidate(store.trials())
    if best is None:
        raise InputError(
            f"none of the candidates' scores can be normalised, so none is best; see {run.log_file} and the report"
        )
    assert best.method is not None
    recipe = session.bank.recipe(best.method, best.parameters)
    test = records.merged("candidate", best.name, "test", recipe, number=best.number)
    test = note_differences(records, store, test)
    for trial in best_of_each_method(store.trials()):
        assert trial.method is not None
        other = session.bank.recipe(trial.method, trial.parameters)
        records.merged("candidate", trial.name, "test", other, number=trial.number)
    view.phase("writing the best model")
    record = record_of(ready, recipe, store.trials(), test)
    for line in write_best(session, recipe, ready.models.base, run, record):
        view.note(line)
    if best.choice is not None:
        members = by_choice(front(store.trials()))
        write_front(session.bank, members if best in members else [*members, best], run)
    return TuneResult(run.path, session.engine_share())


@contextmanager
def _full_disk_explained(run: RunFolder) -> Iterator[None]:
    """Say how to go on after a full disk, whichever library met it: the study is SQLite's."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise InputError(
            f"no space left on the disk of {run.path}: free some, and go on with the same command and --resume"
        ) from error
