"""A race through real Ray Tune: trials wait, go on and end as it says; a killed search goes on as the calm one."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from made_up_search import MadeUpScorer, MadeUpSearch
from mergebench_ray.errors import StoppedError
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import searched
from mergebench_ray.search import race_scheduler, run
from mergebench_ray.search.run import search
from mergebench_ray.search.trainable import CandidateTrial

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
POOL = {"trials": 12, "race": {"kind": "pool", "survivors": 4}}


def note_start(_what_no_pickle_holds: Any, starts: list[int], number: int) -> None:
    """As a view with its lock would."""
    starts.append(number)


def tuned(folder: Path, options: Any = POOL, *, engines: int = 1, **space: Any) -> MadeUpSearch:
    """A sitting that has come to its end."""
    one = MadeUpSearch(folder, MadeUpScorer(), options, engines=engines, **space)
    search(
        *(one.sweep, one.space, one.session, one.store, one.records, one.run, one.options, one.budget),
        on_start=functools.partial(note_start, threading.Lock(), one.started),
        on_finish=one.finished.append,
        on_decision=one.decided.append,
        note=one.said.append,
    )
    return one


def table(folder: Path) -> list[Any]:
    """All that a row says but times and costs."""
    return [
        (one.role, one.number, one.optuna_number, one.parameters, one.domains, one.objectives, one.estimate)
        for one in searched(TrialStore(folder).trials())
    ]


@pytest.fixture(scope="module")
def calm(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> MadeUpSearch:
    return tuned(tmp_path_factory.mktemp("calm"))


def test_what_tune_drives_is_what_a_plain_loop_drives(calm: MadeUpSearch, tmp_path: Path) -> None:
    MadeUpSearch(tmp_path, MadeUpScorer(), POOL).drive()
    assert table(tmp_path) == table(calm.run.path)
    assert (tmp_path / "decisions.jsonl").read_text() == calm.run.decisions_file.read_text()
    assert len(calm.finished) == 12
    assert calm.started == list(range(12))  # so that the last is "12 of 12" for people
    assert {one.role for one in calm.finished} == {"candidate", "stopped"}


class KilledError(Exception):
    """Ends a sitting in the middle."""


def test_a_search_that_was_killed_twice_in_a_race_goes_on_as_the_calm_one(
    calm: MadeUpSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = JsonLines.append

    def at_the_close(records: Sequence[Any]) -> bool:
        return {"action": "close"} in records

    def later(records: Sequence[Any]) -> bool:
        return len(JsonLines(tmp_path / "decisions.jsonl").read()) > 20

    for is_killed in (at_the_close, later):

        def append(self: JsonLines, records: Iterable[Any], is_killed: Any = is_killed) -> None:
            records = list(records)
            if is_killed(records):
                raise KilledError
            before(self, records)

        with monkeypatch.context() as patch:
            patch.setattr(JsonLines, "append", append)
            with pytest.raises(KilledError):
                tuned(tmp_path)
    tuned(tmp_path)
    assert table(tmp_path) == table(calm.run.path)
    assert (tmp_path / "decisions.jsonl").read_text() == calm.run.decisions_file.read_text()


def test_two_groups_of_engines_race_at_once_and_tune_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = tuned(tmp_path, engines=2)
    assert "Trial" not in capfd.readouterr().out
    rows = searched(one.store.trials())
    assert sorted(row.optuna_number or 0 for row in rows) == list(range(12))
    assert {row.role for row in rows} == {"candidate", "stopped"}


def test_a_search_ends_in_one_line_where_tunes_own_processes_are_lost_whenever_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostTrial(CandidateTrial):
        def step(self) -> dict[str, Any]:
            os._exit(1)

    monkeypatch.setattr(run, "CandidateTrial", LostTrial)
    monkeypatch.setattr(race_scheduler, "_LOSSES", 2)
    with pytest.raises(StoppedError, match="Ray Tune's process for candidate 0 was lost 2 times in a row before it"):
        tuned(tmp_path)


def test_a_budget_ends_what_tune_drives_where_it_ends_a_plain_loop(tmp_path: Path) -> None:
    options = {"race": {"kind": "pool", "survivors": 4}, "sampler": "RandomSampler", "budget": {"tokens": 8_000}}
    tuned(tmp_path / "tune", options)
    MadeUpSearch(tmp_path / "plain", MadeUpScorer(), options).drive()
    assert table(tmp_path / "tune") == table(tmp_path / "plain")
    tune, plain = tmp_path / "tune", tmp_path / "plain"
    assert (tune / "decisions.jsonl").read_text() == (plain / "decisions.jsonl").read_text()
    begun, *enough = JsonLines(tune / "sittings.jsonl").read()
    assert list(begun) == ["searching"]  # only since then no budget refuses to begin
    assert enough == JsonLines(plain / "sittings.jsonl").read()


def test_a_search_ends_in_one_line_where_nothing_is_left_to_try_also_when_it_goes_on(tmp_path: Path) -> None:
    whole = {"low": 0, "high": 1, "integer": True, "per": "specialist"}
    decisions = ""
    for sitting in range(2):
        one = tuned(tmp_path, {"trials": 12, "race": {"kind": "pool", "survivors": 2}}, coefficient=whole)
        assert one.said == ["nothing is left to try: 8 candidates are all there are"]
        assert len(one.finished) == (0 if sitting else 8)
        decisions = decisions or one.run.decisions_file.read_text()
        assert one.run.decisions_file.read_text() == decisions
    rows = searched(one.store.trials())
    assert len({str(row.parameters) for row in rows}) == len(rows) == 8
    assert {row.role for row in rows} == {"candidate", "stopped"}


@pytest.mark.parametrize(("first", "engines"), [({"kind": "pool", "survivors": 2, "p": 0.4}, 1), ("none", 2)])
def test_what_another_run_knows_of_some_candidates_or_of_all_is_not_asked_by_tune(
    tmp_path: Path, first: Any, engines: int
) -> None:
    options = {"trials": 6, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 2}}
    known = options | {"race": first}
    tuned_folder, plain_folder = tmp_path / "tune" / "b", tmp_path / "plain" / "b"
    MadeUpSearch(tmp_path / "a", MadeUpScorer(), known).drive()
    (tmp_path / "a" / "sweep.yaml").touch()
    for folder in (tuned_folder, plain_folder):
        shutil.copytree(tmp_path / "a", folder.parent / "a")
    plain = MadeUpSearch(plain_folder, MadeUpScorer(), options, reuses=True)
    plain.drive()
    one = tuned(tuned_folder, options, engines=engines, reuses=True)
    assert table(tuned_folder) == table(plain_folder)
    reused = [row for row in searched(one.store.trials()) if row.reused_from]
    assert len(reused) == 6
    assert {row.tokens for row in reused} == {0} if first == "none" else {row.role for row in reused} > {"stopped"}
    assert (plain.scorer.asked == 0) == (first == "none")
