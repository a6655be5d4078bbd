"""What a sweep keeps running is all there at the start, and gone at the end, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors_here import ActorHere, fetch_here
from mergebench_ray.config import Sweep
from mergebench_ray.errors import StoppedError
from mergebench_ray.judges.judges import Judges
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.search import session as module
from mergebench_ray.search.session import open_session

WARM_UP = [("model_soup", {}), ("task_arithmetic", {"scaling_coef": 0.4})]


class RecordingEvaluator:
    """An engine's actor that starts in no time."""

    def __init__(self, index: int) -> None:
        self.start_seconds = 1.0 + index
        self.calls: list[str] = []
        self.lost = ""  # where it is lost whenever it starts, its actor

    def is_there(self) -> None:
        pass

    def start(self) -> Any:
        self.calls.append("start")
        return self.stats()

    def connect(self, localise: Any) -> None:
        self.calls.append("connect")
        if self.lost:
            error = RayActorError()
            error.actor_id = self.lost
            raise error

    def items_digest(self, split: str, domains: list[str] | None = None) -> str:
        self.calls.append(split)
        return f"{split} {domains}"

    def stats(self) -> Any:
        return SimpleNamespace(
            start_seconds=self.start_seconds,
            dtype="float32",
            device="cpu",
            proof=f"{self.start_seconds}",
            busy_seconds=2.0,
        )


class RecordingBank:
    """A bank that notes its merges and its end; `fails` lets its merges fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.merged: list[Any] = []
        self.actor_shards = SimpleNamespace(ids=["shard"])
        self.closed = False

    def recipe(self, method: str, parameters: dict[str, Any]) -> Any:
        return method, parameters

    def merge(self, recipe: Any) -> None:
        if self.fails:
            raise KeyboardInterrupt
        self.merged.append(recipe)

    def localise(self, manifest: Any) -> Any:
        return manifest

    def close(self) -> None:
        self.closed = True


class World:
    """Everything that a session starts, replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bank: RecordingBank) -> None:
        self.bank = bank
        self.evaluators: list[ActorHere] = []
        self.killed: list[Any] = []
        self.compiled_ahead: list[Any] = []
        self.gpus = 0.0
        self.loses = False
        fetch_here(monkeypatch)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": self.gpus})
        monkeypatch.setattr(module, "check_engines_fit", lambda _engine: None)
        monkeypatch.setattr(module, "Watchdog", self._watchdog)
        monkeypatch.setattr(module, "start_evaluator", self._start_evaluator)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
        monkeypatch.setattr(module, "compiled_ahead", self._compiled_ahead)
        monkeypatch.setattr(module, "Bank", SimpleNamespace(load=self._load))

    def _watchdog(self, actors: Callable[[], list[str]], headless: Any, leaving: Any) -> Any:
        self.watched = actors
        return SimpleNamespace(close=lambda: None)

    def _load(self, *_: Any, begun: Callable[[list[str]], None], **__: Any) -> RecordingBank:
        begun(["shard"])
        self.watched_while_loading = self.watched()
        return self.bank

    def _start_evaluator(self, *_: Any) -> ActorHere:
        self.evaluators.append(ActorHere(RecordingEvaluator(len(self.evaluators))))
        if self.loses:
            self.evaluators[-1].actor.lost = self.evaluators[-1].id
        return self.evaluators[-1]

    @contextmanager
    def _compiled_ahead(self, merges: Any, names: Any) -> Iterator[None]:
        self.compiled_ahead.append(names)
        yield

    def open(self, folder: Path, engines: int = 2) -> Any:
        content = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": None}, "engine": {"count": engines}}
        sweep = Sweep.model_validate(content)
        models: Any = {"math": "m", "coding": "c"}
        nothing: Any = None
        judges = Judges({}, {}, ("judge",))
        return open_session(
            *(sweep, sweep.load_suite(), nothing, models, WARM_UP, RunFolder(folder), None, judges, lambda *_: None),
            note=print,
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, RecordingBank())


def test_a_session_begins_with_engines_that_know_the_items_and_a_bank_that_has_merged_once(
    world: World, tmp_path: Path
) -> None:
    with world.open(tmp_path) as session:
        assert world.bank.merged == WARM_UP
        assert all(
            one.actor.calls == ["start", "start", "connect", "validation", "final", "test"] for one in world.evaluators
        )
        assert (session.engine_start_seconds, session.engine_proof) == (2.0, "2.0")
        assert (session.engine_dtype, session.engines.actors) == ("float32", world.evaluators)
        assert "math" in session.domains
        assert world.killed == []
        assert not world.bank.closed
    assert world.killed == world.evaluators
    assert world.bank.closed


def test_engines_shards_and_judges_are_watched_from_their_start(world: World, tmp_path: Path) -> None:
    with world.open(tmp_path):
        assert world.watched_while_loading == [*(one.id for one in world.evaluators), "shard", "judge"]
        assert world.watched() == world.watched_while_loading


def test_methods_are_compiled_ahead_on_cpus_alone(world: World, tmp_path: Path) -> None:
    with world.open(tmp_path):
        assert world.compiled_ahead == [["coding", "math"]]
    world.gpus = 1.0
    with world.open(tmp_path):
        assert len(world.compiled_ahead) == 1


def test_an_interrupt_while_a_session_starts_ends_all_that_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, RecordingBank(fails=True))
    with pytest.raises(KeyboardInterrupt), world.open(tmp_path):
        pytest.fail("the session began")
    assert world.killed == world.evaluators
    assert world.bank.closed


def test_engines_that_are_lost_whenever_they_start_are_one_line_that_says_how_the_search_goes_on(
    world: World, tmp_path: Path
) -> None:
    world.loses = True
    said = r"no other is left: see engine-0\.log in the run's folder, give engines less .* --resume$"
    with pytest.raises(StoppedError, match=said), world.open(tmp_path, engines=1):
        pytest.fail("the session began")


def test_an_error_in_a_session_ends_it_too(world: World, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), world.open(tmp_path):
        _ = 1 / 0
    assert len(world.killed) == 2
    assert world.bank.closed


def test_the_digest_of_the_items_is_that_of_the_domains(world: World, tmp_path: Path) -> None:
    with world.open(tmp_path) as session:
        assert session.items_digest("test", ["math"]) == "test ['math']"


def test_the_engines_share_of_the_time_is_their_mean(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open(tmp_path) as session:
        monkeypatch.setattr(module.time, "perf_counter", lambda: session.started + 8.0)
        assert session.engine_share() == pytest.approx(2.0 / 8.0)
