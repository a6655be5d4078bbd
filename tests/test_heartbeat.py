"""Actors that hang are noticed, apart from their work, and killed; a head that is gone is noticed, too."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from mergebench_ray import heartbeat
from mergebench_ray import steps as steps_module
from mergebench_ray.heartbeat import Watchdog
from mergebench_ray.ray_errors import why_lost
from mergebench_ray.ray_nodes import leaving_nodes
from mergebench_ray.steps import STEP_SECONDS, Step, Steps


class Store:
    """Stands for Ray's store, and for the node that all of it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[bytes, bytes] = {}
        self.is_away = False
        monkeypatch.setattr(heartbeat.internal_kv, "_internal_kv_get", self._get)
        monkeypatch.setattr(heartbeat.internal_kv, "_internal_kv_put", self._put)
        monkeypatch.setattr(
            heartbeat.internal_kv, "_internal_kv_del", lambda key, namespace: self.values.pop(key, None)
        )
        self.head = socket.create_server(("127.0.0.1", 0))
        address = ":".join(map(str, self.head.getsockname()))
        context = SimpleNamespace(gcs_address=address, get_node_id=lambda: "here")
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        self.nodes = [{"NodeID": "here", "Alive": True}, {"NodeID": "there", "Alive": False}]
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        self.leaving: frozenset[str] = frozenset()
        monkeypatch.setattr(heartbeat, "leaving_nodes", lambda: self.leaving)
        monkeypatch.setattr(heartbeat, "_EVERY_SECONDS", 0.05)
        monkeypatch.setattr(heartbeat, "_SILENT_SECONDS", 0.5)
        monkeypatch.setattr(heartbeat, "_HEADLESS_SECONDS", 0.5)

    def _get(self, key: bytes, namespace: bytes) -> bytes | None:
        if self.is_away:
            raise ConnectionError
        return self.values.get(key)

    def _del(self, key: bytes, namespace: bytes) -> None:
        self.values.pop(key, None)

    def _put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        self.values[key] = value


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    store = Store(monkeypatch)
    yield store
    store.head.close()


@contextmanager
def worker(store: Store, actor: str, step: Callable[[], Step] = lambda: (0.0, 0.0)) -> Iterator[tuple[Any, Any]]:
    """A process that waits, named as Ray's are, and an event that stops its signs of life."""
    waiting = subprocess.Popen(["ray::Worker", "-c", "input()"], executable=sys.executable, stdin=subprocess.PIPE)
    stopped = threading.Event()

    said = {"pid": waiting.pid, "node": "here"}
    threading.Thread(target=heartbeat._beat, args=(actor, said, step, stopped), daemon=True).start()
    yield waiting, stopped
    stopped.set()
    waiting.kill()
    waiting.communicate()


def test_what_gives_no_sign_of_life_is_killed_and_what_does_is_not(store: Store) -> None:
    with worker(store, "a") as (hangs, stopped), worker(store, "b") as (works, _):
        watch = Watchdog(lambda: ["a", "b", "starting"], headless=lambda: None)
        stopped.set()
        assert hangs.wait(timeout=20) == -signal.SIGKILL
        assert works.poll() is None
        watch.close()
    error = ray.exceptions.ActorDiedError()
    error.actor_id = "a"
    assert "it hung, without a sign of life for" in why_lost(error)
    assert why_lost(error) == "its process was killed or crashed", "what came back under the id hangs no more"


def test_nodes_that_are_to_be_taken_away_are_told(store: Store) -> None:
    told: queue.Queue[frozenset[str]] = queue.Queue()
    watch = Watchdog(lambda: [], headless=lambda: None, leaving=told.put)
    assert told.get(timeout=20) == frozenset()
    store.leaving = frozenset({"there"})
    assert "there" in told.get(timeout=20) | told.get(timeout=20)
    watch.close()


def test_a_ray_that_tells_nobody_which_nodes_will_be_taken_away_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray._private.state, "state", SimpleNamespace())
    assert leaving_nodes() | leaving_nodes() == frozenset()
    assert [record.message for record in caplog.records] == [
        f"Ray {ray.__version__} does not say which nodes are to be taken away: what is on one is lost with it, and "
        "repeated elsewhere"
    ]


def test_what_spins_in_one_step_is_killed_and_a_step_that_may_take_so_long_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "STEP_SECONDS", 0.5)
    with worker(store, "a", step=lambda: (301.0, 0.0)) as (spins, _), worker(store, "b", lambda: (301.0, 900.0)) as b:
        watch = Watchdog(lambda: ["a", "b"], headless=lambda: None)
        assert spins.wait(timeout=20) == -signal.SIGKILL
        assert b[0].poll() is None
        watch.close()


def test_what_hangs_in_a_step_is_killed_when_that_step_has_taken_longer_than_it_may(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "_LEAST_SECONDS", 0.5)
    hanging, working = Steps(), Steps()
    both = worker(store, "a", hanging.present), worker(store, "b", working.present)
    with hanging.step(0.1), working.step(60.0), both[0] as (hangs, _), both[1] as (works, _):
        watch = Watchdog(lambda: ["a", "b"], headless=lambda: None)
        assert hangs.wait(timeout=20) == -signal.SIGKILL
        assert works.poll() is None
        watch.close()


def test_of_several_steps_the_one_nearest_to_its_end_is_told() -> None:
    steps = Steps()
    assert steps.present() == (0.0, 0.0)
    with steps.step(1e6), steps.step(), steps.step(STEP_SECONDS):
        assert steps.present()[1] == 0.0
        with steps.step(1.0):
            assert steps.present()[1] == steps_module._LEAST_SECONDS + 1.0
    assert steps.present() == (0.0, 0.0)


def test_a_step_is_not_counted_from_before_this_process_stood_still(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "STEP_SECONDS", 60.0)
    with worker(store, "a", step=lambda: (301.0, 0.0)) as (works, _):
        watch = Watchdog(lambda: ["a"], headless=lambda: None)
        watch._steady -= 90.0
        watch._looked -= 1.0  # for twenty times as long as between two looks
        with pytest.raises(subprocess.TimeoutExpired):
            works.wait(timeout=1.0)
        watch.close()


def test_nothing_is_killed_while_the_store_is_away(store: Store) -> None:
    with worker(store, "a") as (works, stopped):
        watch = Watchdog(lambda: ["a"], headless=lambda: None)
        store.is_away = True
        stopped.set()
        with pytest.raises(subprocess.TimeoutExpired):
            works.wait(timeout=1.5)
        watch.close()


def test_a_head_that_is_gone_is_noticed(store: Store) -> None:
    noticed = threading.Event()
    Watchdog(list, headless=noticed.set)
    assert not noticed.wait(1.0)
    store.head.close()
    assert noticed.wait(20)


def test_a_node_that_is_lost_under_the_driver_is_noticed(store: Store) -> None:
    noticed = threading.Event()
    Watchdog(list, headless=noticed.set)
    assert not noticed.wait(0.5)
    store.nodes[0]["Alive"] = False
    assert noticed.wait(20)


def test_only_processes_of_ray_are_killed() -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    heartbeat._kill_here(stranger.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(timeout=0.5)
    stranger.kill()
    stranger.communicate()
