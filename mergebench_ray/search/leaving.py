"""Nodes that are to be taken away: what is there ends its work and gets no more, others elsewhere take its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from mergebench_ray.bank.shard import BankShard
from mergebench_ray.bank.shards import ActorShards
from mergebench_ray.errors import one_line
from mergebench_ray.placement.starting import Reservation
from mergebench_ray.ray_nodes import is_alive
from mergebench_ray.search.supervisor import Supervisor

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0


class LeavingNodes:
    """Clears nodes, each in a thread of its own. An engine ends what it is at; a shard is there twice for a while.

    Where no other node has room for what a node had, nothing there begins anew until the node is gone: engines wait,
    and Ray brings back shards as it does those of any node that is lost.

    Args:
        engines: the engines.
        shards: the bank's.
        places: what is set aside for them.
        swapping: a block in which shards may be exchanged; after it all engines know of it.
        say: called with a line about a node, and about each shard that has another place.
    """

    def __init__(
        self,
        engines: Supervisor,
        shards: ActorShards,
        places: Reservation,
        swapping: Callable[[], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:
        self._engines, self._shards, self._places = engines, shards, places
        self._swapping, self._say = swapping, say
        self._in_hand: set[str] = set()
        self._closed = threading.Event()

    def see(self, nodes: Collection[str]) -> None:
        """Begin to clear those of the nodes that are not in hand: again where an engine has come up since.

        Args:
            nodes: Ray's ids of all that are to be taken away.
        """
        for node in set(nodes) - self._in_hand:
            self._in_hand.add(node)
            threading.Thread(target=self._clear, args=(node,), daemon=True).start()

    def close(self) -> None:
        """Wait for no node any more."""
        self._closed.set()

    def _clear(self, node: str) -> None:
        engines, left = self._engines.leave(node), list[PlacementGroup]()
        try:
            shards = self._shards.on(node)
            if not engines and not shards:
                self._in_hand.discard(node)
                return
            what = [*(f"engine {index}" for index in engines), *(f"shard {index} of the bank" for index in shards)]
            self._say(
                f"{', '.join(what)}: the node {node[:6]} is to be taken away; nothing more is given to it, and what "
                "it has goes to another one that has room"
            )
            found = self._places.leave(node, lambda: is_alive(node) and not self._closed.is_set())
            if found is not None:
                self._move(shards, self._places.all_of("shard"))
                left = found
        except Exception as error:
            if not self._closed.is_set():
                _log.warning("what is on node %s stays there until it is lost: %s", node[:6], one_line(error))
            while is_alive(node) and not self._closed.wait(_LOOK_SECONDS):
                pass
        with suppress(Exception):  # the search has ended, and says why by itself
            self._engines.move(engines)
            for group in left:
                remove_placement_group(group)  # a node on which nothing is left ends by itself
        self._in_hand.discard(node)

    def _move(self, indices: Sequence[int], where: Sequence[dict[str, Any]]) -> None:
        fresh = self._shards.begin_elsewhere(indices, where)
        try:
            ray.get([actor.call(BankShard.load) for actor in fresh])
            with self._swapping():
                self._shards.swap(indices, fresh)
        except BaseException:
            for actor in fresh:
                actor.kill()
            raise
        for index in indices:
            self._say(f"shard {index} of the bank is on another node now")
