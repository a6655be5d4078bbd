"""A run's folder: begun whole, for its owner only, and again after a full disk."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock

from made_up_trials import made_up_trials
from mergebench_ray.cache import one_at_a_time
from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.files import is_full_disk
from mergebench_ray.runs.opening import check_run_folder, locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from small_disks import small_disk


@pytest.fixture
def sweep() -> Sweep:
    return Sweep(name="x", suite="smollm2-mini", methods={"ties": {"density": {"low": 0.1, "high": 0.5}}})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        yield folder


def fill(disk: Path) -> Path:
    """Take all room but that for a few empty files."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            return ballast
    raise AssertionError


def test_a_run_is_for_its_owner_only(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with locked_run(tmp_path / "run", sweep, resume=False) as run:
        assert run.path.stat().st_mode & 0o777 == 0o700


def test_looking_at_a_place_for_a_run_leaves_nothing(sweep: Sweep, tmp_path: Path) -> None:
    check_run_folder(tmp_path / "a" / "run", sweep, resume=False)
    assert list(tmp_path.iterdir()) == []
    with locked_run(tmp_path / "run", sweep, resume=False), pytest.raises(InputError, match="another process"):
        check_run_folder(tmp_path / "run", sweep, resume=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_files_cannot_be_locked_no_run_begins_and_nothing_is_left(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def acquire(lock: FileLock) -> None:
        Path(lock.lock_file).touch()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    refused = rf"run: its file system cannot lock files \({os.strerror(code)}\); choose another --out"
    with pytest.raises(InputError, match=refused), locked_run(tmp_path / "a" / "run", sweep, resume=False):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=f"cannot be locked .{os.strerror(code)}"), one_at_a_time(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("bad", ["file", "file/run", "dangling", "x" * 300])
def test_places_where_no_run_can_be_are_refused(sweep: Sweep, tmp_path: Path, bad: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.iterdir())
    for resume in (False, True):
        with pytest.raises(InputError, match=r"output|--out"):
            check_run_folder(tmp_path / bad, sweep, resume=resume)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_a_full_disk_kept_from_beginning_can_begin(sweep: Sweep, disk: Path) -> None:
    ballast = fill(disk)
    with pytest.raises(InputError, match="no space left"), locked_run(disk / "run", sweep, resume=False):
        pass
    ballast.unlink()
    with locked_run(disk / "run", sweep, resume=False) as run:
        assert run.sweep_file.is_file()


def test_a_study_on_a_full_disk_is_known_as_such(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Optuna waits for seconds between its tries.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{disk / 'study.db'}")
    fill(disk)

    def search() -> None:
        study.optimize(lambda trial: trial.suggest_float("x" * 400, 0, 1), n_trials=1000)

    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        search()
    assert is_full_disk(caught.value)


def test_all_that_a_run_writes_is_its_own_and_the_report_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    own = [run.sweep_file, run.plan_file, run.study_file, run.trials_file, run.log_file, run.lock_file, run.id_file]
    own += [run.items_file("d", "test"), run.questions_file("test"), run.forgetting_folder / "base.json"]
    own += [
        run.recipe_file,
        run.model_folder / "x",
        run.engine_log(0),
        run.judge_log("j"),
        tmp_path / "study.db-journal",
    ]
    assert [path for path in own if not run.holds(path)] == []
    assert not any(run.holds(path) for path in (run.report_file, tmp_path, tmp_path.parent / "x", tmp_path / "x" / "y"))


def with_trials(sweep: Sweep, trials: int) -> Sweep:
    return sweep.model_copy(update={"search": sweep.search.model_copy(update={"trials": trials})})


def test_a_run_goes_on_for_as_many_trials_as_one_likes(sweep: Sweep, tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", with_trials(sweep, 3), resume=False) as run:
        for trial in made_up_trials(3):
            TrialStore(run.path).append(trial)
        study = run.study_name(sweep)
    for trials in (30, 5, 3):
        with locked_run(tmp_path / "run", with_trials(sweep, trials), resume=True) as run:
            assert Sweep.from_yaml(run.sweep_file).search.trials == trials
            assert run.study_name(sweep) == study
            assert len(TrialStore(run.path).trials()) == len(made_up_trials(3))


def test_fewer_trials_than_are_there_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", with_trials(sweep, 5), resume=False) as run:
        for trial in made_up_trials(3):
            TrialStore(run.path).append(trial)
    with pytest.raises(InputError, match=r"search\.trials = 2, but 3 candidates have begun already"):
        check_run_folder(tmp_path / "run", with_trials(sweep, 2), resume=True)
    assert Sweep.from_yaml(run.sweep_file).search.trials == 5


def test_a_run_goes_on_with_another_budget(sweep: Sweep, tmp_path: Path) -> None:
    def with_budget(**limits: float) -> Sweep:
        search = SearchOptions.model_validate({"budget": limits} if limits else {"trials": 4})
        return sweep.model_copy(update={"search": search})

    with locked_run(tmp_path / "run", with_budget(tokens=1000), resume=False) as run:
        for trial in made_up_trials(3):
            TrialStore(run.path).append(trial)
    for limits in ({"tokens": 2000}, {"minutes": 3.0}, {}, {"candidates": 3}):
        with locked_run(tmp_path / "run", with_budget(**limits), resume=True) as run:
            budget = Sweep.from_yaml(run.sweep_file).search.budget
            assert (budget.limits if budget else {}) == limits
    with pytest.raises(InputError, match=r"search\.budget\.candidates = 2, but 3 candidates have begun already"):
        check_run_folder(tmp_path / "run", with_budget(candidates=2), resume=True)


def test_a_run_goes_on_with_another_choice_and_says_what_to_leave_out_again(sweep: Sweep, tmp_path: Path) -> None:
    def searching(**options: Any) -> Sweep:
        search = SearchOptions.model_validate({"trials": 4, "objective": ["math", "safety"], **options})
        return sweep.model_copy(update={"search": search})

    with locked_run(tmp_path / "run", searching(), resume=False) as run:
        for trial in made_up_trials(3):
            TrialStore(run.path).append(trial)
    with locked_run(tmp_path / "run", searching(choice={"weights": {"math": 2.0}}), resume=True) as run:
        assert Sweep.from_yaml(run.sweep_file).search.choice == {"weights": {"math": 2.0}}
    with pytest.raises(
        InputError, match=r"was begun without search\.constraints\.math, now it is '.*'; leave it out again"
    ):
        check_run_folder(tmp_path / "run", searching(constraints={"math": 0.5}), resume=True)
