"""What a run's folder says of how it gets on."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from made_up_trials import made_up_trials, raced
from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.config.sweep import DEFAULT_TRIALS
from mergebench_ray.errors import InputError
from mergebench_ray.runs.opening import locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.status import RunStatus, run_status
from mergebench_ray.runs.trial_store import TrialStore

SWEEP = Sweep.model_validate(
    {"name": "x", "suite": "smollm2-mini", "methods": {"model_soup": None}, "search": {"trials": 9}}
)


def status_of(folder: Path, rows: int, *, test: bool = False, locked: bool = False) -> RunStatus:
    with locked_run(folder, SWEEP, resume=False) as run:
        TrialStore(run.path).extend(raced(made_up_trials(rows, test=test), in_full=2))
        if test:
            run.model_folder.mkdir(parents=True)
        if locked:
            return run_status(folder)
    return run_status(folder)


def test_a_run_that_somebody_works_in_is_under_way_and_reading_it_disturbs_nothing(tmp_path: Path) -> None:
    found = status_of(tmp_path / "run", 6, locked=True)
    assert found.state == "under way"
    assert found.candidates == {"scored": 2, "stopped": 4}
    assert found.most == 9
    assert found.lines()[0].startswith("x: under way")


def test_a_run_may_begin_while_somebody_looks_at_it(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", SWEEP, resume=False) as run:
        pass
    with run.lock_file.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with locked_run(tmp_path / "run", SWEEP, resume=True):
            pass


def test_a_run_that_was_killed_says_how_to_go_on(tmp_path: Path) -> None:
    found = status_of(tmp_path / "run", 6)
    assert found.state == "stopped"
    assert "6 candidates are kept" in found.next_step
    assert "--resume" in found.next_step
    assert "candidates: 6 of 9 (2 scored, 4 stopped)" in found.lines()
    with locked_run(tmp_path / "run", SWEEP, resume=True):
        assert run_status(tmp_path / "run").state == "under way"


def test_a_run_that_is_over_names_its_winner_and_its_report(tmp_path: Path) -> None:
    found = status_of(tmp_path / "run", 6, test=True)
    assert found.state == "finished"
    assert found.on_test
    assert str(RunFolder(tmp_path / "run").report_file) in found.next_step
    assert json.loads(json.dumps(found.to_dict()))["state"] == "finished"


def test_a_sweep_that_does_not_say_how_many_candidates_has_as_many_as_is_usual(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", SWEEP.model_copy(update={"search": SearchOptions()}), resume=False):
        pass
    assert run_status(tmp_path / "run").most == DEFAULT_TRIALS


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run \(no sweep\.yaml there\)"):
        run_status(tmp_path)
