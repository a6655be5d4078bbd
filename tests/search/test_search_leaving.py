"""What is on a node that is to be taken away ends its work there, gets no more, and has its place taken elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergebench_ray.search import leaving as module
from mergebench_ray.search.leaving import LeavingNodes
from mergebench_ray.search.losses import LostError
from recorded_scorer import EngineDiedError, Parts


class World:
    """Two engines, the first on a node that leaves, as shard 1; `room` is set once another node has room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.parts = Parts(monkeypatch, folder, engines=2, nodes=["leaves", "stays"])
        self.happened: list[str] = []
        self.room, self.is_gone, self.let_go = threading.Event(), threading.Event(), threading.Event()
        self.fails = False
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
        monkeypatch.setattr(module, "is_alive", lambda _node: not self.is_gone.is_set())
        monkeypatch.setattr(module, "remove_placement_group", self._remove)
        shards: Any = SimpleNamespace(on=self._on, begin_elsewhere=self._begin, swap=self._swap)
        places: Any = SimpleNamespace(leave=self._leave, all_of=lambda kind: [kind])
        self.leaving = LeavingNodes(self.parts.supervisor, shards, places, self._swapping, self.parts.said.append)

    def _on(self, node: str) -> list[int]:
        return [1] if node == "leaves" else []

    def _begin(self, indices: list[int], where: list[str]) -> list[Any]:
        return [SimpleNamespace(call=self._load, kill=lambda: self.happened.append("end new shard"))]

    def _load(self, _method: Any) -> Any:
        self.happened.append("load")
        return OSError("no such file") if self.fails else None

    def _swap(self, indices: list[int], fresh: list[Any]) -> None:
        self.happened.append(f"swap {indices}")

    @contextmanager
    def _swapping(self) -> Iterator[None]:
        self.happened.append("between merges")
        yield
        self.happened.append("engines know")

    def _leave(self, node: str, goes_on: Any) -> list[str] | None:
        while not self.room.wait(0.01):
            if not goes_on():
                return None
        return ["group"]

    def _remove(self, group: str) -> None:
        self.happened.append(f"let {group} go")
        self.let_go.set()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def test_an_engine_ends_what_it_is_at_and_gets_no_more_while_shards_have_a_second_place(world: World) -> None:
    engines, parts = world.parts.supervisor, world.parts
    assert engines.acquire() == (0,)
    world.leaving.see({"leaves"})
    world.leaving.see({"leaves"})
    world.room.set()
    with ThreadPoolExecutor(1) as pool:
        assert engines.acquire() == (1,)
        third = pool.submit(engines.acquire)
        with pytest.raises(NotYet):
            third.result(timeout=0.1)
        assert not world.let_go.is_set(), "the engine was at a candidate still"
        engines.release((0,))
        assert third.result(timeout=20) == (0,)
    assert world.let_go.wait(20)
    assert world.happened == ["load", "between merges", "swap [1]", "engines know", "let group go"]
    assert [one.actor.node for one in parts.handles] == ["leaves", "stays", "here"]
    [first, *others] = parts.said
    assert first.startswith("engine 0, shard 1 of the bank: the node leaves is to be taken away; nothing more is given")
    assert set(others) == {
        "shard 1 of the bank is on another node now",
        "engine 0 ended (its node is to be taken away): another one took its place after 0 s",
    }


def test_an_engine_that_is_lost_with_its_node_meanwhile_is_replaced_all_the_same(world: World) -> None:
    engines = world.parts.supervisor
    assert engines.acquire() == (0,)
    world.leaving.see({"leaves"})
    world.is_gone.set()
    with pytest.raises(LostError, match="its node was taken away"), engines.watched((0,)):
        raise EngineDiedError(world.parts, 0, preempted=True)
    engines.release((0,))
    while len(engines.up) == 1:
        time.sleep(0.01)
    assert engines.acquire(everything=True) == (0, 1)
    assert len(world.parts.handles) == 3
    assert world.happened == [], "Ray brings back the shard"


def test_engines_are_waited_for_no_more_where_no_other_node_has_room(world: World) -> None:
    world.leaving.see({"leaves"})
    engines = world.parts.supervisor
    while len(engines.up) == 2:
        time.sleep(0.01)
    assert engines.acquire(everything=True) == (1,)
    world.is_gone.set()
    engines.release((1,))
    while len(engines.up) == 1:
        time.sleep(0.01)
    assert engines.acquire(everything=True) == (0, 1)


def test_what_cannot_go_elsewhere_stays_where_it_is_until_it_is_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fails = True
    world.room.set()
    world.leaving.see({"leaves"})
    engines = world.parts.supervisor
    while not caplog.records:
        time.sleep(0.01)
    assert world.happened == ["load", "end new shard"]
    assert engines.acquire(everything=True) == (1,), "none begins again where its node goes"
    engines.release((1,))
    world.is_gone.set()
    while len(engines.up) == 1:
        time.sleep(0.01)
    assert engines.acquire(everything=True) == (0, 1)
    assert [record.message for record in caplog.records] == [
        "what is on node leaves stays there until it is lost: OSError: no such file"
    ]


def test_of_a_node_on_which_nothing_is_nothing_is_said(world: World) -> None:
    world.leaving._clear("another")
    assert world.parts.said == []


def test_an_engine_that_was_starting_at_the_first_look_is_moved_at_a_later_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.room.set()
    with monkeypatch.context() as patch:
        patch.setattr(world.parts.supervisor, "leave", lambda _node: ())
        world.leaving._clear("stays")
    world.leaving.see({"stays"})
    assert world.let_go.wait(20)
    assert [one.actor.node for one in world.parts.handles] == ["leaves", "stays", "here"]
