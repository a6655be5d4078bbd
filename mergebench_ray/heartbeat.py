"""Signs of life of actors, apart from their work: one that hangs is killed, and whoever needs it starts another one."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mergebench_ray.ray_errors import blame
from mergebench_ray.ray_nodes import is_alive, leaving_nodes
from mergebench_ray.steps import STEP_SECONDS, Step

_log = logging.getLogger(__name__)
_NAMESPACE = b"mergebench_ray"
_EVERY_SECONDS = 5.0
_SILENT_SECONDS = 40.0
"""Without a sign of life, after which an actor hangs; with the time between two it is noticed within a minute."""
_HEADLESS_SECONDS = 30.0
"""Without a head, which Ray may be told to bring back in between; it gives up itself after a minute."""


def beat(step: Callable[[], Step] = lambda: (0.0, 0.0)) -> None:
    """Give signs of life of the actor that this process is, from a thread of its own; of nothing else.

    Args:
        step: what it is at, where that should be short.
    """
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return
    context = ray.get_runtime_context()
    said = {"pid": os.getpid(), "node": context.get_node_id()}
    arguments = (str(context.get_actor_id()), said, step, threading.Event())
    threading.Thread(target=_beat, args=arguments, daemon=True).start()


def _beat(actor: str, said: Mapping[str, Any], step: Callable[[], Step], ended: threading.Event) -> None:
    for count in itertools.count():
        with suppress(Exception):  # Ray's store may be away for a while
            in_step, most = step()
            value = json.dumps({**said, "count": count, "in_step": in_step, "most": most}).encode()
            internal_kv._internal_kv_put(_key(actor), value, overwrite=True, namespace=_NAMESPACE)
        if ended.wait(_EVERY_SECONDS):
            return


@dataclass(frozen=True)
class _Sign:
    """The last sign of life, and since when there was no other."""

    value: bytes
    since: float


class Watchdog:
    """Kills actors that hang, and notices when Ray itself is gone, from a thread.

    Args:
        actors: Ray's ids of those that give signs of life.
        headless: called once where the head is gone, or Ray on this process's own node: Ray itself would abort it some
            time later, or has given up all that it started.
        leaving: called at each look with Ray's ids of the nodes that are to be taken away; returns at once.
    """

    def __init__(
        self,
        actors: Callable[[], Iterable[str]],
        headless: Callable[[], None],
        leaving: Callable[[frozenset[str]], None] = lambda _nodes: None,
    ) -> None:
        self._actors, self._headless, self._leaving = actors, headless, leaving
        self._here = ray.get_runtime_context().get_node_id()
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head, self._head_seen = (host.strip("[]"), int(port)), time.monotonic()
        self._signs: dict[str, _Sign] = {}
        self._closed = threading.Event()
        self._looked = self._steady = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """Watch no more, and take away the signs."""
        self._closed.set()
        for actor in list(self._signs):
            with suppress(Exception):
                internal_kv._internal_kv_del(_key(actor), namespace=_NAMESPACE)

    def _watch(self) -> None:
        while not self._closed.wait(_EVERY_SECONDS):
            now = time.monotonic()
            if now - self._looked > 3 * _EVERY_SECONDS:
                self._signs.clear()  # it was this process that stood still
                self._head_seen = self._steady = now  # and perhaps all others with it, in the midst of a step
            self._looked = now
            if not self._head_answers(now):
                self._signs.clear()
                continue
            try:
                if not is_alive(self._here):
                    self._closed.set()
                    self._headless()  # what this process has started is given up with its node
                    return
                self._leaving(leaving_nodes())
                for actor in self._actors():
                    self._look(actor, now)
            except Exception as error:
                _log.debug("signs of life cannot be read: %s", error)
                self._signs.clear()

    def _head_answers(self, now: float) -> bool:
        # By hand: Ray's own client waits, and ends this process where it has waited for long.
        try:
            socket.create_connection(self._head, timeout=_EVERY_SECONDS / 2).close()
        except OSError:
            if now - self._head_seen > _HEADLESS_SECONDS:
                self._closed.set()
                self._headless()
            return False
        self._head_seen = now
        return True

    def _look(self, actor: str, now: float) -> None:
        value = internal_kv._internal_kv_get(_key(actor), namespace=_NAMESPACE)
        if value is None:
            return  # it is being started
        sign = self._signs.get(actor)
        if sign is None or sign.value != value:
            sign = self._signs[actor] = _Sign(value, now)
        said = json.loads(value)
        if now - sign.since > _SILENT_SECONDS:
            self._kill(actor, said, f"it hung, without a sign of life for {now - sign.since:.0f} s")
        elif min(said["in_step"], now - self._steady) > (said["most"] or STEP_SECONDS):
            self._kill(actor, said, f"it hung, in one step for {said['in_step']:.0f} s")

    def _kill(self, actor: str, said: dict[str, Any], reason: str) -> None:
        blame(actor, reason)
        del self._signs[actor]
        with suppress(Exception):
            internal_kv._internal_kv_del(_key(actor), namespace=_NAMESPACE)
        kill_on(said["node"], said["pid"])


def end_without_ray(remedy: str) -> None:
    """End this process with one line: nothing of Ray answers any more.

    Args:
        remedy: what to do once Ray runs again.
    """
    line = f"Ray is gone, here or at its cluster's head: start it again, and {remedy}"
    _log.error(line)
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}error: {line}\n".encode())
    os._exit(1)


def kill_on(node: str, pid: int) -> None:
    """End a process of Ray's on any node; a stopped one does not follow Ray's own requests."""
    if node == ray.get_runtime_context().get_node_id():
        _kill_here(pid)
        return
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(_kill_here).options(num_cpus=0, scheduling_strategy=where, max_retries=0).remote(pid)


def _kill_here(pid: int) -> None:
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)


def _key(actor: str) -> bytes:
    return f"alive-{actor}".encode()
