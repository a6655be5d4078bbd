"""Where a worker's calls are made: in threads of this process, or as Ray tasks on the nodes of a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mergebench_ray.bank.window_worker import WindowWorker
from mergebench_ray.checkpoints import TensorFiles
from mergebench_ray.checkpoints.read_once import ReadOnce
from mergebench_ray.progress import Meter

_REPORT_SECONDS = 0.2
_ROOM_SECONDS = 15
"""How long a task may wait for a core, which includes starting a worker."""


@dataclass(frozen=True)
class Call:
    """A call of a worker.

    Attributes:
        method: name of its method.
        arguments: plain ones, or such as `Calls.shared` gives.
        num_bytes: that it reads and writes.
        memory: bytes that it takes while it runs, where these are many; the buffers of a window are not.
    """

    method: str
    arguments: tuple[Any, ...]
    num_bytes: int
    memory: int = 0


class Calls(Protocol):
    """Makes calls that may be made in any order, and again where one was lost."""

    def shared(self, value: Any) -> Any:
        """An argument of many calls, so that it is sent once."""

    def run(self, worker: WindowWorker, calls: Sequence[Call], meter: Meter) -> Iterator[Any]:
        """Make calls, as many at once as there is room for; the first error ends all.

        Yields:
            what they return, in any order.
        """


class ThreadCalls:
    """In threads of this process.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def shared(self, value: Any) -> Any:
        """The value itself."""
        return value

    def run(self, worker: WindowWorker, calls: Sequence[Call], meter: Meter) -> Iterator[Any]:
        """Make the calls."""
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            begun: dict[Future[Any], Call] = {
                pool.submit(getattr(worker, call.method), *call.arguments): call for call in calls
            }
            pending = set(begun)
            try:
                while pending:
                    done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                    for one in done:
                        meter.add(begun.pop(one).num_bytes)
                        yield one.result()
                    meter.report()
            except BaseException:
                worker.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class RayCalls:
    """As Ray tasks, a core each, and the memory that it says; a task whose process or node is lost is run again."""

    @staticmethod
    def can_write(folder: Path, memory: int = 0) -> bool:
        """Whether every node of the cluster can write in a folder of this one, and a core is free or soon will be.

        Args:
            folder: the folder.
            memory: bytes that are to be free beside the core.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from mergebench_ray.ray_nodes import present_nodes

        nodes = [str(node["NodeID"]) for node in present_nodes()]
        look = ray.remote(num_cpus=0)(_may_write)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as probe:
            there = [
                look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe.name)
                for node in nodes
            ]
            if not all(ray.get(there)):
                return False
            # Cores may all be a search's, for days.
            begun = look.options(num_cpus=1, **_memory(memory)).remote(probe.name)
            ready, _ = ray.wait([begun], timeout=_ROOM_SECONDS)
            if not ready:
                ray.cancel(begun)
            return bool(ready)

    def shared(self, value: Any) -> Any:
        """A reference to it in Ray's object store."""
        import ray

        return ray.put(value)

    def run(self, worker: WindowWorker, calls: Sequence[Call], meter: Meter) -> Iterator[Any]:
        """Make the calls, each with a worker like this one, and let this one know the digests that they come by."""
        import ray

        from mergebench_ray.ray_errors import input_errors

        sent = ray.put(worker)
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_called)
        begun = {
            task.options(**_memory(call.memory)).remote(sent, call.method, *call.arguments): call for call in calls
        }
        pending = list(begun)
        try:
            with input_errors():
                while pending:
                    done, pending = ray.wait(pending, timeout=_REPORT_SECONDS)
                    for one in done:
                        answer, digests = ray.get(one)
                        for index, name, digest in digests:
                            model = worker.models[index]
                            assert isinstance(model, ReadOnce)
                            model.take(name, digest)
                        meter.add(begun.pop(one).num_bytes)
                        yield answer
                    meter.report()
        finally:
            for one in pending:
                ray.cancel(one, force=True)


_RETRIES = 5


def _memory(num_bytes: int) -> dict[str, int]:
    """How Ray is told of memory; where it counts none on any node, it would look for it for ever."""
    import ray

    return {"memory": num_bytes} if num_bytes and ray.cluster_resources().get("memory") else {}


def _called(worker: WindowWorker, method: str, *arguments: Any) -> tuple[Any, list[tuple[int, str, str]]]:
    torch.set_num_threads(1)
    answer = getattr(worker, method)(*arguments)
    for one in arguments:
        if isinstance(one, TensorFiles):
            # Of a node that is lost afterwards, nobody would do again what had not gone from its memory to the disk.
            one.leave()
    return answer, worker.hashed()


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK)
