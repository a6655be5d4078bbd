"""A stream of a shard's weights ends in an error as soon as they are not those that were merged, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import ray
import torch

from mergebench_ray.bank import shards as module
from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, NoLongerHeldError, ShardPlace
from mergebench_ray.bank.shards import ActorShards
from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import StoppedError
from mergebench_ray.weights.crossing import Bytes, Landing
from mergebench_ray.weights.memory_file import map_memory
from tiny_models import tiny_llama, tiny_specialist

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("without_compiler", "ray_cluster")]

BYTES = 64 << 20
"""Of a stream: many more than are on their way at once."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[ActorShards]:
    folder = tmp_path_factory.mktemp("models")
    base = resolve(str(tiny_llama(folder / "base")))
    specialist = resolve(str(tiny_specialist(folder / "a", base.folder, seed=0)))
    shards = ActorShards(base, {"a": specialist}, Layout.of(base), 1, 1, False)
    shards.load(lambda _read: None)
    yield shards
    shards.close()


def ranges(place: ShardPlace) -> list[tuple[int, int]]:
    """All that the shard holds, again and again."""
    size = place.stop - place.start
    return [(0, size)] * -(-BYTES // (2 * size))


def rest(stream: Iterator[Bytes]) -> int:
    return sum(len(portion) for portion in stream)


def test_a_stream_does_not_run_far_ahead_of_its_reader(shards: ActorShards) -> None:
    before = shards.call_one(0, BankShard.where)
    stream = shards.stream(0, before, ranges(before))
    came = [len(next(stream))]
    shards.call(BankShard.place, {})
    with pytest.raises(ray.exceptions.RayTaskError, match="merged something else") as refused:
        came.extend(map(len, stream))
    assert isinstance(refused.value.cause, NoLongerHeldError)
    assert sum(came) < BYTES / 2


def test_streams_that_nobody_reads_to_their_end_keep_no_shard_busy(shards: ActorShards) -> None:
    place = shards.call_one(0, BankShard.where)
    for _ in range(3):  # more than a shard answers at once
        stream = shards.stream(0, place, ranges(place))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert shards.call_one(0, BankShard.where) == place
    assert rest(shards.stream(0, place, ranges(place))) >= BYTES


class Breaking(Landing):
    """Its first connections break where they please."""

    left: list[int]

    def portions(self, count: int, watch: Callable[[float], None]) -> Iterator[Bytes]:
        most = self.left.pop(0) if self.left else count + 1
        for portion in super().portions(count, watch):
            yield portion[:most]
            if (most := most - len(portion)) <= 0:
                raise ConnectionResetError("broken")


def test_a_connection_that_breaks_goes_on_where_it_ended(shards: ActorShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Landing", Breaking)
    Breaking.left = [100_001, 1]
    place = shards.call_one(0, BankShard.where)
    size = place.stop - place.start
    came = np.concatenate([portion.copy() for portion in shards.stream(0, place, [(3, size), (0, 5)])])
    memory = map_memory(place.path, size).view(torch.uint8).numpy()
    assert np.array_equal(came, np.concatenate([memory[6:], memory[:10]]))


def test_nodes_that_do_not_reach_each_other_end_in_one_line(
    shards: ActorShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(Landing):
        def __init__(self, host: str) -> None:
            super().__init__(host)
            with socket.create_server((host, 0)) as nobody:
                self.meeting = type(self.meeting)(host, nobody.getsockname()[1], self.meeting.ticket)

    monkeypatch.setattr(module, "Landing", Unreachable)
    place = shards.call_one(0, BankShard.where)
    with pytest.raises(StoppedError, match=r"shard 0 .* cannot send .* \(ConnectionRefusedError.*ports"):
        rest(shards.stream(0, place, [(0, 1)]))


def test_a_shard_that_is_lost_in_the_middle_ends_the_stream_and_does_not_go_on_with_it(shards: ActorShards) -> None:
    place = shards.call_one(0, BankShard.where)
    stream = shards.stream(0, place, ranges(place))
    next(stream)
    os.kill(int(place.path.split("/")[2]), signal.SIGKILL)
    with pytest.raises((NoLongerHeldError, ray.exceptions.RayTaskError), match=r"was lost while|has begun again"):
        rest(stream)
    assert shards.call_one(0, BankShard.where) != place
    with pytest.raises(ray.exceptions.RayTaskError, match="has begun again"):
        rest(shards.stream(0, place, [(0, 1)]))
