"""A search in the background, as far as it can be followed without engines; docs/python.md has the rest."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from made_up_run import write_run
from made_up_trials import made_up_trials
from mergebench_ray import InputError, StoppedError, Sweep, tune
from mergebench_ray.commands.started_run import StartedRun
from mergebench_ray.config.yaml_files import to_yaml
from tiny_models import tiny_llama, tiny_specialist

SWEEP: dict[str, Any] = {
    "name": "begun",
    "suite": "smollm2-mini",
    "methods": {"task_arithmetic": {"scaling_coef": {"low": 0.1, "high": 1.0}}},
}


def write_sweep(folder: Path, **keys: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(to_yaml({**SWEEP, **keys}))
    return path


def test_what_is_wrong_is_raised_by_the_caller_and_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown key 'serach'"):
        tune.start(write_sweep(tmp_path, serach={}), out=tmp_path / "run")
    with pytest.raises(InputError, match="seed"):
        tune.start(write_sweep(tmp_path), out=tmp_path / "run", overrides={"search.seed": "x"})
    with pytest.raises(InputError, match="nothing to resume"):
        tune.start(write_sweep(tmp_path), out=str(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run").exists()


def test_tune_is_still_a_function_with_its_arguments() -> None:
    assert [*inspect.signature(tune).parameters][:2] == ["sweep", "out"]
    assert (tune.__doc__ or "").startswith("Search for the best merge.")


def test_a_sweep_is_handed_on_whole(tmp_path: Path) -> None:
    sweep = Sweep.from_yaml(
        write_sweep(
            tmp_path,
            search={"storage": "postgresql://me:secret@host/db", "budget": {"minutes": 5.5}, "seed": 3},
            methods={"ties": {"density": {"low": 0.1, "high": 0.9}, "scaling_coef": 0.5}, "model_soup": None},
        ),
        {"engine.kv_cache_gib": 0.25},
    )
    with (tmp_path / "again").open("w+b") as stream:
        stream.write(sweep.to_yaml().encode())
        stream.seek(0)
        assert Sweep.from_stream(stream) == sweep


def test_an_override_may_be_a_path(tmp_path: Path) -> None:
    sweep = Sweep.from_yaml(str(write_sweep(tmp_path)), {"base": tmp_path / "base", "specialists.math": Path("math")})
    assert (sweep.base, sweep.specialists) == (str(tmp_path / "base"), {"math": "./math"})


def test_a_line_of_a_library_is_not_why_a_search_was_stopped(tmp_path: Path) -> None:
    write_run(tmp_path / "run", made_up_trials(test=False))
    with tempfile.TemporaryFile() as output:
        command = ["sh", "-c", "echo 'error: no such service'; kill -TERM $$"]
        run = StartedRun(tmp_path / "run", subprocess.Popen(command, stdout=output), output)
        with pytest.raises(StoppedError, match=r"was stopped; go on with tune\.start\(\.\.\., resume=True\)"):
            run.wait(60)
        assert run.log == "error: no such service\n"
        assert "candidates are kept" in run.status.next_step


@pytest.mark.slow
def test_what_is_found_later_is_raised_by_whoever_waits(tmp_path: Path) -> None:
    """A specialist of another shape is found when models are looked at, which the command does."""
    base = tiny_llama(tmp_path / "base")
    other = tiny_specialist(tmp_path / "math", tiny_llama(tmp_path / "wide", intermediate_size=64), seed=1)
    keys = {"base": str(base), "specialists": {"math": str(other)}, "evaluation": {"domains": ["math"]}}
    run = tune.start(write_sweep(tmp_path, **keys), out=tmp_path / "run")
    assert run.is_running
    assert run.status.state == "under way"
    assert "under way" in repr(run)
    assert (run.trials.empty, run.best, run.model) == (True, None, None)
    with pytest.raises(TimeoutError, match=r"not over after 0\.1 s"):
        run.wait(0.1)
    with pytest.raises(InputError, match=r"specialist 'math'.*intermediate_size is 64"):
        run.wait()
    assert not run.is_running
    assert run.status.state == "stopped"
    assert "intermediate_size is 64" in run.status.next_step
    assert f"error: {run.status.next_step}" in run.log


@pytest.mark.slow
def test_a_search_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    run = tune.start(write_sweep(tmp_path), out=tmp_path / "run")
    time.sleep(1)  # in the middle of its imports
    run.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(run.pid, 0)
    assert run.status.state == "stopped"
    with pytest.raises(StoppedError, match="was stopped; it had not begun: start it again"):
        run.wait()
    run.stop()
    assert "start it again" in run.status.next_step
    assert json.dumps(run.status.to_dict())
