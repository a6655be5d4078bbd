"""Whoever watches a run hears of each candidate once, and of none that fails to be told does the search suffer."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from made_up_trials import made_up_trials, raced
from mergebench_ray.config import Sweep
from mergebench_ray.runs.opening import locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.watching import watch as module
from mergebench_ray.watching.metrics import SearchMetrics
from mergebench_ray.watching.watch import watching

SWEEP = Sweep.model_validate(
    {"name": "x", "suite": "smollm2-mini", "methods": {"model_soup": None}, "tracking": "mlflow"}
)


class Told:
    """A tracker that remembers what it is told, until it breaks."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[Mapping[str, float]] = []
        self.ends: list[Mapping[str, float]] = []
        self.breaks_at = -1
        self.says = "the wire\nis cut"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.breaks_at:
            raise OSError(self.says)
        self.steps.append(step)
        self.values.append(values)

    def end(self, values: Mapping[str, float]) -> None:
        self.ends.append(values)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(module, "begin_tracking", lambda _name, _run: told)
    monkeypatch.setattr(module, "SearchMetrics", lambda _run: Silent())
    return told


class Silent:
    """Metrics while Ray is down."""

    def finished(self, _trial: Trial, _best: Trial | None) -> None:
        pass


def sitting(folder: Path, rows: list[Trial], *, resume: bool = False) -> tuple[list[str], RunFolder]:
    """The rows come to their end one by one in a run; what was noted."""
    notes: list[str] = []
    with locked_run(folder, SWEEP, resume=resume) as run:
        store = TrialStore(run.path)
        with watching(SWEEP, run, store, notes.append) as watch:
            for row in rows:
                store.append(row)
                if searched([row]):
                    watch.finished(row, None)
    return notes, run


def test_each_candidate_is_a_step_with_its_numbers_and_the_best_so_far(told: Told, tmp_path: Path) -> None:
    rows = raced(made_up_trials(6, test=False))
    assert sitting(tmp_path / "run", rows)[0] == []
    assert told.steps == list(range(6))
    for row, values in zip(searched(rows), told.values, strict=True):
        assert values["score/math"] == row.domains["math"].score
        assert ("estimate" in values) == (row.estimate is not None)
        assert all(isinstance(value, float) for value in values.values())
    known = [values.get("best", float("-inf")) for values in told.values]
    assert known == sorted(known)
    assert told.ends == [{}]


def test_a_run_that_goes_on_tells_the_rest(told: Told, tmp_path: Path) -> None:
    rows = made_up_trials(6, test=False)
    sitting(tmp_path / "run", rows[:-2])
    sitting(tmp_path / "run", rows[-2:], resume=True)
    assert told.steps == list(range(6))


def test_a_tracker_that_breaks_is_noted_once_and_told_everything_when_the_run_goes_on(
    told: Told, tmp_path: Path
) -> None:
    rows = made_up_trials(6, test=False)
    told.breaks_at = 2
    [note], _ = sitting(tmp_path / "run", rows[:-1])
    assert note == "mlflow is told nothing more (the wire is cut); it is when the run goes on"
    assert told.steps == [0, 1]
    told.breaks_at = -1
    sitting(tmp_path / "run", rows[-1:], resume=True)
    assert told.steps == [0, 1, 2, 3, 4, 5]


def test_what_a_broken_tracker_says_is_shown_and_logged_without_its_password(
    told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told.breaks_at, told.says = 0, "request to https://me:hunter2@there:80/api failed"
    [note], _ = sitting(tmp_path / "run", made_up_trials(2, test=False))
    assert "(request to https://***@there:80/api failed)" in note
    assert "https://***@there:80/api" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_search_goes_on_where_metrics_fail_or_the_count_cannot_be_kept(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_run: str) -> None:
        raise RuntimeError("no metrics")

    monkeypatch.setattr(module, "SearchMetrics", fail)
    monkeypatch.setattr(RunFolder, "tracked_file", property(lambda run: run.path / "gone" / "tracked.json"))
    [note], _ = sitting(tmp_path / "run", made_up_trials(2, test=False))
    assert "No such file" in note
    assert told.steps == [0]


@pytest.mark.parametrize("damage", ["", "[]", '{"mlflow": "x"}'])
def test_a_lost_count_has_the_tracker_told_all_again(told: Told, tmp_path: Path, damage: str) -> None:
    rows = made_up_trials(3, test=False)
    _, run = sitting(tmp_path / "run", rows)
    run.tracked_file.write_text(damage)
    sitting(tmp_path / "run", [], resume=True)
    assert told.steps == [0, 1, 2, 0, 1, 2]


def test_metrics_are_where_prometheus_looks(ray_cluster: None) -> None:
    metrics = SearchMetrics("watched")
    rows = searched(raced(made_up_trials(6, test=False), in_full=2))
    for row in rows:
        metrics.finished(row, rows[0])
    metrics.moved(1000)
    metrics.moved(1024)
    metrics.failed()
    wanted = {
        'outcome="scored"': 2.0,
        'outcome="stopped"': 4.0,
        "mergebench_ray_moved_bytes": 1024.0,
        "mergebench_ray_failures": 1.0,
        "mergebench_ray_swap_seconds_count": 6.0,
        "mergebench_ray_tokens": float(sum(row.tokens for row in rows)),
    }
    deadline = time.monotonic() + 60
    while (found := scraped("watched", wanted)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def scraped(run: str, names: Mapping[str, float]) -> dict[str, float]:
    """Sums of the series of a run that have each of some texts in their names."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            series, _, value = line.rpartition(" ")
            if f'run="{run}"' in series:
                for name in names:
                    if name in series:
                        found[name] = found.get(name, 0.0) + float(value)
    return found


def test_the_dashboard_draws_metrics_that_there_are() -> None:
    import json

    text = (Path(__file__).parents[2] / "cluster" / "grafana.json").read_text()
    board: dict[str, Any] = json.loads(text)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    there = {
        f"ray_{metric.info['name']}" for metric in vars(SearchMetrics("drawn")).values() if hasattr(metric, "info")
    }
    for name in there:
        assert any(name in query for query in queries), f"{name} is not drawn"
    for query in queries:
        assert any(name in query for name in there), query
