"""A stream of a shard's weights ends in an error as soon as they are not those that were merged, and leaves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import ray

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, NoLongerHeldError
from mergebench_ray.bank.shards import ActorShards
from mergebench_ray.checkpoints import resolve
from tiny_models import tiny_llama, tiny_specialist

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("without_compiler", "ray_cluster")]

ONE_BY_ONE = [(index, index + 1) for index in range(60)]
"""Each of them an object of its own, many more than are sent ahead."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[ActorShards]:
    folder = tmp_path_factory.mktemp("models")
    base = resolve(str(tiny_llama(folder / "base")))
    specialist = resolve(str(tiny_specialist(folder / "a", base.folder, seed=0)))
    shards = ActorShards(base, {"a": specialist}, Layout.of(base), 1, 1, False)
    shards.load(lambda _read: None)
    yield shards
    shards.close()


def test_a_stream_does_not_run_far_ahead_of_its_reader(shards: ActorShards) -> None:
    before = shards.call_one(0, BankShard.where)
    stream = shards.stream(0, BankShard.bits, before, ONE_BY_ONE)
    assert len([*islice(stream, 3)]) == 3
    shards.call(BankShard.place, {})
    came: list[object] = []
    with pytest.raises(ray.exceptions.RayTaskError, match="merged something else") as refused:
        came.extend(stream)
    assert isinstance(refused.value.cause, NoLongerHeldError)
    assert len(came) < 20


def test_streams_that_nobody_reads_to_their_end_keep_no_shard_busy(shards: ActorShards) -> None:
    place = shards.call_one(0, BankShard.where)
    for _ in range(3):  # more than a shard answers at once
        stream = shards.stream(0, BankShard.bits, place, ONE_BY_ONE)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert shards.call_one(0, BankShard.where) == place
    assert len([*shards.stream(0, BankShard.bits, place, ONE_BY_ONE)]) == len(ONE_BY_ONE)


def test_a_shard_that_is_lost_between_two_objects_ends_the_stream_and_does_not_go_on_with_it(
    shards: ActorShards, tmp_path: Path
) -> None:
    place = shards.call_one(0, BankShard.where)
    stream = shards.stream(0, BankShard.bits, place, ONE_BY_ONE)
    next(stream)
    os.kill(int(place.path.split("/")[2]), signal.SIGKILL)
    came: list[object] = []
    with pytest.raises(NoLongerHeldError, match="shard 0 of the bank was lost while its weights were read"):
        came.extend(stream)
    assert len(came) < 20
    assert shards.call_one(0, BankShard.where) != place
    with pytest.raises(ray.exceptions.RayTaskError, match="has begun again"):
        list(shards.stream(0, BankShard.bits, place, ONE_BY_ONE))
