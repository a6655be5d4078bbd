"""Where a bank's shards live: in Ray actors, or in this very process where one of them is enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneYet
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, ShardPlace
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.ray_actors import actors_of
from mergebench_ray.ray_errors import input_errors

P = ParamSpec("P")
R = TypeVar("R")
_POLL_SECONDS = 0.2


class Shards(Protocol):
    """All shards of a bank."""

    def load(self, report: Callable[[int], None]) -> list[ShardPlace]:
        """Let every shard read its slices; `report` gets the parameters read so far.

        Raises:
            InputError: NaN or infinity in a weight, naming checkpoint and tensor.
        """

    def call(self, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs) -> list[R]:
        """Call a method of every shard, at once where they are apart, with the same arguments."""

    def call_one(
        self, index: int, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Call a method of one shard."""

    def close(self) -> None:
        """Let the weights go."""


class ActorShards:
    """Shards in Ray actors, spread over the nodes; the handle may be pickled and used anywhere.

    Args:
        base: the base.
        specialists: in the order of their sorted names.
        layout: the flat order.
        count: number of shards.
        threads: threads of each shard's passes.
        use_gpu: whether each holds its weights on a GPU.
        where: Ray's options for each, such as its place; else they are spread, and have a GPU of their own.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        layout: Layout,
        count: int,
        threads: int,
        use_gpu: bool,
        where: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        # Two calls at once, so that progress can be asked for while a shard loads. Threads that wait for each other
        # must not spin: an engine on the same cores would make every pass many times slower.
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": int(use_gpu),
            "max_concurrency": 2,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        }
        makers = [actors_of(BankShard, **{**options, **one}) for one in where or [{}] * count]
        self._actors = [
            make(base, specialists, layout, index, count, threads, use_gpu) for index, make in enumerate(makers)
        ]

    def load(self, report: Callable[[int], None]) -> list[ShardPlace]:
        """Let every shard read its slices; the first failure ends all."""
        loads = [actor.call(BankShard.load) for actor in self._actors]
        pending = list(loads)
        with input_errors():
            while pending:
                finished, pending = ray.wait(pending, timeout=_POLL_SECONDS)
                ray.get(finished)
                report(sum(ray.get([actor.call(BankShard.progress) for actor in self._actors])))
            return ray.get(loads)

    def call(self, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs) -> list[R]:
        """Call a method of every shard at once."""
        with input_errors():
            return ray.get([actor.call(method, *arguments, **options) for actor in self._actors])

    def call_one(
        self, index: int, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Call a method of one shard."""
        with input_errors():
            return ray.get(self._actors[index].call(method, *arguments, **options))

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            actor.kill()
        self._actors = []


class LocalShards:
    """Shards in this process: without Ray's processes a single merge takes half a gigabyte less."""

    def __init__(self, shards: Sequence[BankShard]) -> None:
        self._shards = list(shards)

    def load(self, report: Callable[[int], None]) -> list[ShardPlace]:
        """Let every shard read its slices, one after the other."""
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(lambda: [shard.load() for shard in self._shards])
            while True:
                try:
                    return loading.result(timeout=_POLL_SECONDS)
                except NotDoneYet:
                    report(sum(shard.progress() for shard in self._shards))

    def call(self, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs) -> list[R]:
        """Call a method of every shard, one after the other."""
        return [method(shard, *arguments, **options) for shard in self._shards]

    def call_one(
        self, index: int, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Call a method of one shard."""
        return method(self._shards[index], *arguments, **options)

    def close(self) -> None:
        """Drop the shards, and the memory that others may have mapped."""
        for shard in self._shards:
            shard.close()
        self._shards = []
