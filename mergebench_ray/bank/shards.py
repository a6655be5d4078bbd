"""Where a bank's shards live: in Ray actors, or in this very process where one of them is enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneYet
from contextlib import suppress
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, NoLongerHeldError, ShardPlace
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.errors import StoppedError, one_line
from mergebench_ray.heartbeat import beat
from mergebench_ray.ray_actors import Actor, actors_of, by_value, from_values
from mergebench_ray.ray_errors import first_cause, input_errors, lost_actor, why_lost
from mergebench_ray.steps import Steps
from mergebench_ray.weights.crossing import Bytes, Landing, Meeting, SenderDoneError, send

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
_POLL_SECONDS = 0.2
_PLACE_SECONDS = 90.0
"""After which a shard that Ray has not started again is taken to wait for a place."""
_CONNECTIONS = 3
"""So many times a shard and a reader try to be connected."""
_LOSSES = 3
"""So many times in a row a shard may be lost before it has answered."""


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

    def stream(self, index: int, place: ShardPlace, ranges: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
        """Bytes of what one shard has merged, as `BankShard.merged` gives them.

        Raises:
            NoLongerHeldError: where it was lost meanwhile; an actor's own errors come as Ray's around them.
            StoppedError: no connection from its node to this one holds.
        """

    def close(self) -> None:
        """Let the weights go."""


class BankShardActor(BankShard):
    """A shard in an actor that Ray may start again.

    Args:
        pieces: what a `BankShard` is made of, as `by_value` takes it apart.
    """

    def __init__(self, *pieces: bytes) -> None:
        steps = Steps()
        beat(steps.present)
        base, specialists, layout, index, shards, threads, use_gpu, streams = from_values(pieces)
        super().__init__(base, specialists, layout, index, shards, threads, use_gpu, steps, streams)

    def send(self, meeting: Meeting, place: ShardPlace, ranges: Sequence[tuple[int, int]], skipped: int = 0) -> None:
        """Send what `merged` gives to a reader on another node. All of it was of that merge if this raises nothing.

        Args:
            meeting: where the reader waits.
            place: as of `merged`.
            ranges: as of `merged`.
            skipped: bytes at their beginning that the reader has.

        Raises:
            NoLongerHeldError: as `merged` does.
            OSError: the reader cannot be reached.
        """
        send(meeting, _beyond(self.merged(place, ranges), skipped))


class ActorShards:
    """Shards in Ray actors, spread over the nodes; the handle may be pickled and used anywhere.

    Ray starts a shard that is lost again, on any node; it reads its own range with the next call, which is repeated.

    Args:
        base: the base.
        specialists: in the order of their sorted names.
        layout: the flat order.
        count: number of shards.
        threads: threads of each shard's passes.
        use_gpu: whether each holds its weights on a GPU.
        where: Ray's options for each, such as its place; else they are spread, and have a GPU of their own.
        say: called in this process with a line about a shard that was lost and what that took.
        streams: as of `BankShard`.
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
        say: Callable[[str], None] = logger.warning,
        *,
        streams: bool = False,
    ) -> None:
        self._say = say
        # Two calls at once, so that progress can be asked for while a shard loads. Threads that wait for each other
        # must not spin: an engine on the same cores would make every pass many times slower.
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": int(use_gpu),
            "max_concurrency": 2,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        }

        def made(index: int, one: Mapping[str, Any]) -> Actor[BankShardActor]:
            pieces = by_value(base, specialists, layout, index, count, threads, use_gpu, streams)
            return actors_of(BankShardActor, **{**options, **one})(*pieces)

        self._made = made
        self._actors = [made(index, one) for index, one in enumerate(where or [{}] * count)]

    @property
    def ids(self) -> list[str]:
        """Ray's ids of the actors, the same after a restart by Ray."""
        return [actor.id for actor in self._actors]

    def load(self, report: Callable[[int], None]) -> list[ShardPlace]:
        """Let every shard read its slices; the first failure ends all."""
        loads = [actor.call(BankShard.load) for actor in self._actors]
        with input_errors():
            pending = list(loads)
            while pending:
                finished, pending = ray.wait(pending, timeout=_POLL_SECONDS)
                for one in finished:
                    self._answered(loads.index(one), one, BankShard.load)
                with suppress(RayActorError):  # its load says so, too
                    report(sum(ray.get([actor.call(BankShard.progress) for actor in self._actors])))
        return self.call(BankShard.load)

    def call(self, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs) -> list[R]:
        """Call a method of every shard at once."""
        begun = [actor.call(method, *arguments, **options) for actor in self._actors]
        with input_errors():
            return [self._answered(index, one, method, *arguments, **options) for index, one in enumerate(begun)]

    def call_one(
        self, index: int, method: Callable[Concatenate[BankShard, P], R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Call a method of one shard."""
        begun = self._actors[index].call(method, *arguments, **options)
        with input_errors():
            return self._answered(index, begun, method, *arguments, **options)

    def stream(self, index: int, place: ShardPlace, ranges: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
        """Bytes of what one shard has merged; nothing is asked for again where it is lost.

        A connection that breaks while the shard is there is made again, and goes on where the last one ended.
        """
        count, came = 2 * sum(stop - start for start, stop in ranges), 0
        host = ray.util.get_node_ip_address()
        for trial in range(_CONNECTIONS):
            try:
                with Landing(host) as landing:
                    sending = self._actors[index].call(BankShardActor.send, landing.meeting, place, ranges, came)
                    for portion in landing.portions(count - came, partial(_require_at_work, sending)):
                        came += len(portion)
                        yield portion
                    ray.get(sending)
                return
            except (RayActorError, ObjectLostError) as error:
                if lost_actor(error) is None:
                    raise
                raise NoLongerHeldError(f"shard {index} of the bank was lost while its weights were read") from error
            except OSError as error:  # Ray's error around one of the sender's is one, too
                if trial == _CONNECTIONS - 1:
                    raise StoppedError(
                        f"shard {index} of the bank cannot send weights to {host} "
                        f"({one_line(first_cause(error))}): nodes must reach each other on all ports"
                    ) from error

    def on(self, node: str) -> list[int]:
        """Which shards are on a node, by Ray's id of it."""
        return [index for index, place in enumerate(self.call(BankShard.where)) if place.node == node]

    def begin_elsewhere(
        self, indices: Sequence[int], where: Sequence[Mapping[str, Any]]
    ) -> list[Actor[BankShardActor]]:
        """Start shards a second time, while the first ones are at hand; `swap` ends those.

        Args:
            indices: which.
            where: Ray's options for each shard of the bank, or nothing, as at the start.
        """
        return [self._made(index, where[index] if where else {}) for index in indices]

    def swap(self, indices: Sequence[int], fresh: Sequence[Actor[BankShardActor]]) -> None:
        """Let shards take the place of others, which end; copies of this handle that others have are of no use then."""
        for index, actor in zip(indices, fresh, strict=True):
            self._actors[index].kill()
            self._actors[index] = actor

    def _answered(
        self,
        index: int,
        begun: ray.ObjectRef[R],
        method: Callable[Concatenate[BankShard, P], R],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> R:
        """The answer of a shard; where it is lost, it is asked again once it has read its range.

        Raises:
            StoppedError: it is lost again and again.
            RayActorError: it cannot be made, whatever is tried.
        """
        for _ in range(_LOSSES):
            try:
                return ray.get(begun)
            except (RayActorError, ObjectLostError) as error:
                if not self._actors or lost_actor(error) is None:
                    raise
                lost, reason, began = error, why_lost(error), time.monotonic()
            with suppress(RayActorError):  # the next call says so
                self._await(index, reason)
                ray.get(self._actors[index].call(BankShard.load))
                seconds = time.monotonic() - began
                self._say(f"shard {index} of the bank was lost ({reason}): it was back after {seconds:.0f} s")
            begun = self._actors[index].call(method, *arguments, **options)
        raise StoppedError(
            f"shard {index} of the bank was lost {_LOSSES} times in a row ({reason}): spread the bank over more shards "
            "(bank.shards) or give it more memory, and go on with the same command and --resume"
        ) from lost

    def _await(self, index: int, reason: str) -> None:
        """Wait until a shard that was lost has its new place; say that it waits where that takes long."""
        patience, said = time.monotonic() + _PLACE_SECONDS, False
        while True:
            there = self._actors[index].call(BankShard.where)
            came = ray.wait([there], timeout=max(0.0, patience - time.monotonic()))[0]
            if not said and (not came or time.monotonic() > patience):
                self._say(f"shard {index} of the bank was lost ({reason}), and waits for a node with a place for it")
                said = True
            try:
                ray.get(there)
                return
            except ActorUnavailableError:  # for a while Ray refuses calls, as if they had found it and lost it again
                time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            actor.kill()
        self._actors = []

    def __getstate__(self) -> dict[str, Any]:
        # Who is told lives in the process that the shards were started in, and what they are made of is large.
        return {**self.__dict__, "_say": logger.warning, "_made": None}


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

    def stream(self, index: int, place: ShardPlace, ranges: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
        """Bytes of what one shard has merged."""
        return self._shards[index].merged(place, ranges)

    def close(self) -> None:
        """Drop the shards, and the memory that others may have mapped."""
        for shard in self._shards:
            shard.close()
        self._shards = []


def _require_at_work(call: ray.ObjectRef[None], seconds: float) -> None:
    """Raise what a sender's call has failed with, or that it is done, if it is over within so many seconds."""
    if ray.wait([call], timeout=seconds)[0]:
        ray.get(call)
        raise SenderDoneError("the shard is done, but not all has come")


def _beyond(runs: Iterator[Bytes], skipped: int) -> Iterator[Bytes]:
    """Runs of bytes without so many at their beginning."""
    for run in runs:
        first = min(skipped, len(run))
        skipped -= first
        yield run[first:]
