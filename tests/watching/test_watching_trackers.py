"""Every tracker keeps what it is told, offline, by its service's own client, and goes on with a run it knows."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config.tracking import TrackerName
from mergebench_ray.errors import InputError
from mergebench_ray.watching import tracker as module
from mergebench_ray.watching.tracker import TrackedRun, begin_tracking, check_tracker

Logged = dict[str, dict[int, float]]
"""Name -> step -> value."""

pytestmark = pytest.mark.slow  # clients take seconds to import


def of_wandb(folder: Path, _run_id: str) -> Logged:
    from wandb.proto import wandb_internal_pb2

    found: Logged = defaultdict(dict)
    for file in sorted(folder.glob("run/wandb/offline-run-*/run-*.wandb")):
        for content in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            for item in record.history.item:
                found[item.key or "/".join(item.nested_key)][record.history.step.num] = json.loads(item.value_json)
            for item in record.summary.update:
                if (name := item.key or "/".join(item.nested_key)).startswith("best/"):
                    found[name][0] = json.loads(item.value_json)
    return found


def records_of(content: bytes) -> Iterator[bytes]:
    """Of a file of Weights & Biases: LevelDB's log format, blocks of 32 KiB, after seven bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a header
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_mlflow(_folder: Path, run_id: str) -> Logged:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("mergebench_ray")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.tags["mergebench_ray.run"] == run_id
    assert run.data.params["suite"] == "smollm2-mini"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: {metric.step: metric.value for metric in history} for name, history in histories.items()}


def of_tensorboard(folder: Path, _run_id: str) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard"))  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    names = events.Tags()["scalars"]  # type: ignore[no-untyped-call]
    return {name: {one.step: one.value for one in events.Scalars(name)} for name in names}  # type: ignore[no-untyped-call]


def of_trackio(_folder: Path, run_id: str) -> Logged:
    from trackio.sqlite_storage import SQLiteStorage

    found: Logged = defaultdict(dict)
    for row in SQLiteStorage.get_logs("mergebench_ray", f"x-{run_id[:8]}"):
        for name, value in row.items():
            if isinstance(value, int | float):
                found[name][row["step"]] = value
    return found


READERS: dict[TrackerName, Callable[[Path, str], Logged]] = {
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
}


def kept(name: TrackerName, folder: Path, run_id: str, last: str) -> Any:
    """What a tracker was told, once what it was told last is there: some write on after they have ended."""
    deadline = time.monotonic() + 20
    while last not in (found := READERS[name](folder, run_id)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_what_it_is_told_is_kept_also_when_the_run_goes_on(
    offline: Path, name: TrackerName, capfd: pytest.CaptureFixture[str]
) -> None:
    run = TrackedRun("x", "0123456789abcdef" * 2, offline / "run", {"suite": "smollm2-mini", "methods": {"ties": {}}})
    first = begin_tracking(name, run)
    first.log(0, {"best": 0.5, "score/math": 0.25})
    first.log(1, {"best": 0.625, "score/math": 0.5})
    first.end({})
    time.sleep(1.1)  # the folders of Weights & Biases are named by the second
    again = begin_tracking(name, run)
    again.log(2, {"best": 0.75, "score/math": 0.0})
    again.end({"normalised_average": 0.875})
    found = kept(name, offline, run.id, "best/normalised_average")
    assert found["best"] == {0: 0.5, 1: 0.625, 2: 0.75}
    assert found["score/math"] == {0: 0.25, 1: 0.5, 2: 0.0}
    assert list(found["best/normalised_average"].values()) == [0.875]
    assert capfd.readouterr().out == "", "the terminal is the live view's"


@pytest.mark.parametrize("name", READERS)
def test_a_client_that_is_not_installed_is_one_line_that_says_how(
    name: TrackerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tracker(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _module: None)
    with pytest.raises(InputError, match=rf"tracking: {name} needs its client: pip install {name}"):
        check_tracker(name)


def test_a_service_that_cannot_begin_is_one_line(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://nowhere")
    with pytest.raises(InputError, match=r"tracking: mlflow cannot begin \(.*no-such-store") as caught:
        begin_tracking("mlflow", TrackedRun("x", "0" * 32, offline, {}))
    assert "\n" not in str(caught.value)


def test_a_client_that_does_not_come_up_is_one_line(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mergebench_ray.watching.trackers.trackio", None)
    with pytest.raises(InputError, match=r"tracking: trackio cannot begin \(import of "):
        begin_tracking("trackio", TrackedRun("x", "0" * 32, offline, {}))


def test_a_server_that_does_not_answer_is_given_up_soon_and_no_password_is_said(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"request to http://\*\*\*@127\.0\.0\.1:9/") as caught:
        begin_tracking("mlflow", TrackedRun("x", "0" * 32, offline, {}))
    assert time.monotonic() - began < 60
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", READERS)
def test_numbers_of_constraints_and_weights_are_told(offline: Path, name: TrackerName) -> None:
    run = TrackedRun("x", "0123456789abcdef" * 2, offline / "run", {"suite": "smollm2-mini"})
    tracker = begin_tracking(name, run)
    tracker.log(
        0, {"missed_by/safety >= 0/9": 0.25, "missed_by/safety <= 0/9": 0.5, "objective/math: 2, coding: 1": 1.0}
    )
    tracker.end({"tokens": 1.0})
    found = kept(name, offline, run.id, "best/tokens")
    told = [one[0] for key, one in found.items() if key.startswith(("missed", "objective"))]
    assert sorted(told) == [0.25, 0.5, 1.0]


def test_the_command_line_is_told_to_nobody(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["mergebench-ray", "tune", "--set", "search.storage=postgresql://me:hunter2@there"]
    )
    run = TrackedRun("x", "0123456789abcdef" * 2, offline / "run", {})
    begin_tracking("wandb", run).end({"tokens": 1.0})
    kept("wandb", offline, run.id, "best/tokens")
    files = [file.read_bytes() for file in offline.glob("run/wandb/offline-run-*/**/*") if file.is_file()]
    assert files
    assert not any(b"hunter2" in content for content in files)


def test_every_tracker_has_a_file_and_a_reader() -> None:
    files = {file.stem for file in (Path(module.__file__).parent / "trackers").glob("[a-z]*.py")}
    assert files == set(READERS) == set(module._NEEDS)
