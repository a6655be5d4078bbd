"""Opening a run's folder: one process at a time works in it.

Once its search has begun, it is only resumed with the sweep that began it, for as many trials as one likes and with any
choice of a model of the front. Before, what is wrong may be changed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mergebench_ray.config import Sweep
from mergebench_ray.config.fields import Split
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.files import (
    cannot_lock,
    check_new_folder,
    check_writable,
    explain_refusals,
    remove_leftovers,
    whole_file,
)
from mergebench_ray.runs.methods_files import changed_method, keep_methods
from mergebench_ray.runs.run_folder import RunFolder

if TYPE_CHECKING:  # a wrong --out is refused before this is imported
    from mergebench_ray.runs.trials import Trial

_LOCK_SECONDS = 0.3
"""`status` holds the lock for a moment when it looks whether somebody works in a folder."""
_FREE = ("search.trials", "search.budget", "search.choice", "tracking", "methods_folder")
"""May be others when a run goes on; of the folder, what is in it is compared."""


def check_run_folder(path: Path, sweep: Sweep, *, resume: bool) -> None:
    """Find out without leaving anything behind whether `locked_run` can work.

    Raises:
        InputError: as `locked_run`.
    """
    with explain_refusals(path, "--out"):
        run = RunFolder(path.resolve())
        if resume:
            _check_same_sweep(run, _as_written(sweep))
        elif run.sweep_file.exists():
            raise InputError(f"{path} holds a run already: go on with --resume, or choose another --out")
        elif not _is_only_begun(run):
            check_new_folder(path)
        check_writable(path)
        if run.lock_file.is_file():
            with _locked(run):
                pass


@contextmanager
def locked_run(path: Path, sweep: Sweep, *, resume: bool) -> Iterator[RunFolder]:
    """Create a run's folder, or open it again with `resume`; locked until the block ends.

    A new one is for its owner only: it holds questions and answers.

    Raises:
        InputError: the folder holds a run and `resume` is off, its search was begun with another sweep, it is not a
            run, cannot be written or locked, or another process works in it.
    """
    check_run_folder(path, sweep, resume=resume)
    run = RunFolder(path.resolve())
    with _folder_of(run, is_new=not resume), _locked(run):
        remove_leftovers(run.path)
        if not run.sweep_file.exists():
            begin_again(run, sweep)
        elif _first_change(run, _as_written(sweep)) is not None or changed_method(run, sweep) is not None:
            _check_same_sweep(run, _as_written(sweep))  # again, now that nobody else works here
            check_same_methods(run, sweep)
            if _holds_usable_scores(run):
                _write_sweep(run, sweep)
            else:
                begin_again(run, sweep)
        yield run


def begin_again(run: RunFolder, sweep: Sweep) -> None:
    """Forget what a run scored before its search, and what its study holds; then its sweep is this one.

    The study gets another name: one that has tried something takes no other search space.
    """
    files = (run.trials_file, run.decisions_file, run.warm_start_file, run.sittings_file)
    for file in (*files, run.losses_file, run.tracked_file):
        file.unlink(missing_ok=True)
    for folder in (run.items_folder, run.race_folder):
        shutil.rmtree(folder, ignore_errors=True)
    with whole_file(run.id_file) as temporary:
        temporary.write_text(f"{secrets.token_hex(16)}\n")
    _write_sweep(run, sweep)


def _write_sweep(run: RunFolder, sweep: Sweep) -> None:
    keep_methods(run, sweep)
    with whole_file(run.sweep_file) as temporary:
        temporary.write_text(to_yaml(_as_written(sweep)))


def _is_only_begun(run: RunFolder) -> bool:
    """Whether a folder holds nothing but what comes before sweep.yaml, as after a full disk."""
    return run.lock_file.is_file() and set(run.path.iterdir()) <= {run.lock_file, run.id_file, run.methods_folder}


def check_same_methods(run: RunFolder, sweep: Sweep) -> None:
    """Refuse to go on with other code of a method than a run was begun with, whose scores would be lost.

    Args:
        run: the run's folder.
        sweep: its methods are known in this process.

    Raises:
        InputError: naming the file.
    """
    if (problem := changed_method(run, sweep)) is not None and _holds_usable_scores(run):
        raise InputError(problem)


def check_same_items(
    folder: Path, trials: Iterable[Trial], items: Mapping[Split, str], as_earlier: Mapping[Split, str]
) -> None:
    """Refuse to go on where data, the suite, or what a judge depends on have changed since a run's trials were scored.

    Args:
        folder: the run's.
        trials: what it holds.
        items: split -> digest of all items that are scored now. Specialists are scored on some of them only.
        as_earlier: the same as earlier versions made it, to which directions of metrics made no difference.

    Raises:
        InputError: naming the split.
    """
    for trial in trials:
        if trial.role != "specialist" and trial.items_digest != items[trial.split]:
            if trial.items_digest == as_earlier[trial.split]:
                raise InputError(
                    f"{folder}: an earlier version of mergebench_ray began it, in which items' scores meant something "
                    "else where one_minus is set or lower is better; start a new run with another --out, or finish "
                    "this one with the version that began it"
                )
            raise InputError(
                f"{folder}: its trials on {trial.split} were scored on other items, or with another judge, than there "
                "are now; undo the change, or start a new run with another --out (one that was begun before a part of "
                "validation was held back goes on with the version that began it)"
            )


def _as_written(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain YAML data; passing it through JSON makes it comparable with what a file holds."""
    data: dict[str, Any] = json.loads(sweep.model_dump_json(exclude_none=True))
    return data


def _check_same_sweep(run: RunFolder, written: dict[str, Any]) -> None:
    if not run.sweep_file.is_file():
        raise InputError(
            f"{run.path}: nothing to resume (no {run.sweep_file.name} there); start without --resume, or check --out"
        )
    changed = _first_change(run, written)
    if changed is None or not _holds_usable_scores(run):
        return
    if (other := _first_change(run, written, besides=_FREE)) is not None:
        key, before, now = other
        begun, mend = f"with {key} = {before!r}", f"give {key} = {before!r}"
        if before is None:
            begun, mend = f"without {key}", "leave it out"
        raise InputError(
            f"{run.sweep_file}: the run was begun {begun}, now it is {'not given' if now is None else repr(now)}; "
            f"{mend} again, or start a new run with another --out"
        )
    search = Sweep.model_validate(written).search
    if (most := search.most_candidates) < (done := _num_candidates(run)):
        of_budget = search.budget is not None and search.budget.candidates == most != search.trials
        key = "search.budget.candidates" if of_budget else "search.trials"
        raise InputError(
            f"{run.sweep_file}: {key} = {most}, but {done} candidates have begun already; give {done} or more"
        )


def _first_change(run: RunFolder, written: dict[str, Any], besides: Sequence[str] = ()) -> tuple[str, Any, Any] | None:
    """A key whose value is another than when the run was begun, with both values; None where all are the same.

    Args:
        run: the run's folder.
        written: the sweep now.
        besides: keys that do not count, nor what is below them.
    """
    before = _flatten(_as_written(Sweep.from_yaml(run.sweep_file)))
    now = _flatten(written)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{one}.") for one in besides)
    )
    return (changed[0], before.get(changed[0]), now.get(changed[0])) if changed else None


def _holds_usable_scores(run: RunFolder) -> bool:
    """Whether another sweep would throw scores away: not if a specialist's has ended the run before its search."""
    from mergebench_ray.runs.trials import read_trials, unusable_specialists

    trials = read_trials(run.path) if os.path.lexists(run.trials_file) else []
    return bool(trials) and not unusable_specialists(trials)


def _num_candidates(run: RunFolder) -> int:
    from mergebench_ray.runs.json_lines import JsonLines
    from mergebench_ray.runs.trials import read_trials, searched

    rows = searched(read_trials(run.path))
    ended = {one.number if one.optuna_number is None else one.optuna_number for one in rows}
    raced = {line["candidate"] for line in JsonLines(run.decisions_file).read() if "candidate" in line}
    return len((ended | raced) - {one.optuna_number for one in rows if one.taken_from})


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


@contextmanager
def _folder_of(run: RunFolder, *, is_new: bool) -> Iterator[None]:
    """Make what is missing of a run's path; where no run could be begun, it is removed again."""
    missing = [one for one in (run.path, *run.path.parents) if not one.exists()]
    run.path.mkdir(parents=True, exist_ok=True)
    if is_new:
        run.path.chmod(0o700)
    try:
        yield
    finally:
        for one in missing:
            with suppress(OSError):  # it holds something
                one.rmdir()


@contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Hold an advisory lock; the kernel frees it when the process ends, however it ends."""
    was_there = run.lock_file.exists()
    try:
        held = FileLock(run.lock_file, timeout=_LOCK_SECONDS, fallback_to_soft=False).acquire()
    except Timeout:
        raise InputError(
            f"{run.path}: another process is working in this run's folder; wait for it or end it"
        ) from None
    except OSError as error:
        if not cannot_lock(error):
            raise
        if not was_there:
            run.lock_file.unlink(missing_ok=True)
        raise InputError(
            f"{run.path}: its file system cannot lock files ({error.strerror}); choose another --out"
        ) from error
    with held:
        yield
