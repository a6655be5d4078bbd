"""What is said, and raised, where a shard is lost: without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from mergebench_ray.bank.shard import BankShard
from mergebench_ray.bank.shards import ActorShards
from mergebench_ray.errors import StoppedError


class Handle:
    """An actor whose calls come to what is in `answers`, by the method's name, one after the other."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers

    def call(self, method: Any, *_: Any) -> Any:
        return self.answers[method.__name__].pop(0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets `ray.get` give, or raise, what it is given, and takes a string for what does not come in time."""

    def got(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(ray, "get", got)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([one for one in refs if not isinstance(one, str)], []))
    return []


def shards(handle: Handle, said: list[str]) -> ActorShards:
    made = ActorShards.__new__(ActorShards)
    made._actors, made._say = [handle], said.append  # type: ignore[list-item]
    return made


def test_a_shard_that_only_reads_for_long_is_not_said_to_wait_for_a_place(said: list[str]) -> None:
    handle = Handle(progress=[RayActorError(), 7], where=[None], load=["reads for long"])
    assert shards(handle, said).call(BankShard.progress) == [7]
    assert [line.split(":")[0] for line in said] == ["shard 0 of the bank was lost (its process was killed or crashed)"]


def test_a_shard_without_a_place_is_said_to_wait(said: list[str]) -> None:
    handle = Handle(progress=[RayActorError(), 7], where=["not yet"], load=["comes then"])
    assert shards(handle, said).call(BankShard.progress) == [7]
    assert "waits for a node with a place for it" in said[0]


def test_a_shard_that_ray_is_still_starting_is_not_lost_once_more(said: list[str]) -> None:
    not_yet = [ActorUnavailableError("still starting", None) for _ in range(9)]
    handle = Handle(progress=[RayActorError(), 7], where=[*not_yet, None], load=[None])
    assert shards(handle, said).call(BankShard.progress) == [7]
    assert len(said) == 1


def test_what_a_shard_fails_with_while_it_is_made_is_raised_as_it_is(said: list[str]) -> None:
    error = ActorDiedError()
    error._actor_init_failed = True
    with pytest.raises(ActorDiedError) as raised:
        shards(Handle(progress=[error]), said).call(BankShard.progress)
    assert raised.value is error


def test_a_shard_that_is_lost_again_and_again_ends_in_one_line_with_its_cause(said: list[str]) -> None:
    losses = [RayActorError() for _ in range(3)]
    handle = Handle(progress=[*losses, None], where=[None] * 3, load=[None] * 3)
    with pytest.raises(StoppedError, match="shard 0 of the bank was lost 3 times in a row") as raised:
        shards(handle, said).call(BankShard.progress)
    assert raised.value.__cause__ is losses[-1]
