"""Merged tensors are read right wherever their shards are; nodes are made up here, so that no cluster is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mergebench_ray.bank import Bank, NoLongerHeldError
from mergebench_ray.bank import bank as bank_module
from mergebench_ray.bank import reading as reading_module
from mergebench_ray.bank.shard import BankShard
from mergebench_ray.checkpoints import resolve
from mergebench_ray.weights.device_memory import ELSEWHERE
from mergebench_ray.weights.stream import WeightStream
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, without_compiler: None) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("models")
    base = resolve(str(tiny_llama(folder / "base")))
    specialists = {
        name: resolve(str(tiny_specialist(folder / name, base.folder, seed=i))) for i, name in enumerate("ab")
    }
    bank = Bank.load(base, specialists, shards=3, threads=1, in_process=True)
    yield bank
    bank.close()


@pytest.fixture
def other_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is on another node than all shards are."""
    for module in (bank_module, reading_module):
        monkeypatch.setattr(module, "this_node", lambda: "another")


def copied(bank: Bank) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in bank.tensors()}


def test_a_reader_on_another_node_gets_the_same_bits(bank: Bank, request: pytest.FixtureRequest) -> None:
    bank.merge(bank.recipe("dare", {}))
    expected = copied(bank)
    request.getfixturevalue("other_node")
    found = copied(bank)
    assert [*found] == [*expected]
    assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected)


def test_shards_of_this_node_are_read_beside_those_of_others(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = bank.merge(bank.recipe("task_arithmetic", {}))
    expected = copied(bank)
    asked: list[int] = []
    stream = bank._shards.stream

    def noted(index: int, _place: object, ranges: object) -> object:
        asked.append(index)
        return stream(index, merged.places[index], ranges)  # type: ignore[arg-type]

    places = [merged.places[0], replace(merged.places[1], node="another"), merged.places[2]]
    monkeypatch.setattr(bank._shards, "stream", noted)
    monkeypatch.setattr(bank, "_last", replace(merged, places=tuple(places)))
    assert isinstance(bank.localise(merged.manifest, places), WeightStream)
    found = copied(bank)
    assert asked == [1]
    assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected)


@pytest.mark.usefixtures("other_node")
def test_only_what_is_named_is_asked_of_the_shards(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = bank.merge(bank.recipe("task_arithmetic", {}))
    sent: list[int] = []
    stream = bank._shards.stream

    def noted(index: int, place: object, ranges: list[tuple[int, int]]) -> object:
        sent.append(sum(stop - start for start, stop in ranges))
        return stream(index, place, ranges)  # type: ignore[arg-type]

    monkeypatch.setattr(bank._shards, "stream", noted)
    weights = bank.localise(merged.manifest, merged.places)
    assert [bucket.tensors for bucket in weights.buckets([])] == [()]
    assert sent == []
    some = merged.manifest.tensors[::5]
    assert [tensor.name for bucket in weights.buckets([one.name for one in some]) for tensor in bucket.tensors] == [
        tensor.name for tensor in some
    ]
    assert sum(sent) == sum(tensor.count for tensor in some)


@pytest.mark.usefixtures("other_node")
def test_weights_of_two_merges_are_never_read_as_one(bank: Bank) -> None:
    first = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": 0.3}))
    names = [tensor.name for tensor in first.manifest.tensors]
    weights = bank.localise(first.manifest, first.places)
    assert isinstance(weights, WeightStream)
    buckets = replace(weights, bucket_bytes=1).buckets(names)
    next(buckets)
    second = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": 0.5}))
    with pytest.raises(NoLongerHeldError, match="merged something else"):
        list(buckets)
    with pytest.raises(NoLongerHeldError):
        next(weights.buckets(names))
    assert not bank.holds(first)
    assert len([*bank.localise(second.manifest, second.places).buckets(names)]) == 1


@pytest.mark.usefixtures("other_node")
def test_a_merge_that_changes_nothing_leaves_what_is_read_as_it_is(bank: Bank) -> None:
    recipe = bank.recipe("task_arithmetic", {"scaling_coef": 0.4})
    first = bank.merge(recipe)
    buckets = bank.localise(first.manifest, first.places).buckets([tensor.name for tensor in first.manifest.tensors])
    assert bank.merge(recipe).places == first.places
    assert bank.holds(first)
    assert len([*buckets]) == 1


def test_a_shard_that_begins_again_is_another_one(bank: Bank) -> None:
    shard = bank._shards._shards[0]  # type: ignore[attr-defined]
    again = BankShard(shard._base_checkpoint, dict(enumerate(shard._checkpoints)), bank.layout, 0, 3, 1, False)  # type: ignore[arg-type]
    place = replace(again.where(), path=shard.where().path, changes=shard.where().changes)
    assert place != shard.where()
    again.close()


def test_memory_that_could_not_be_opened_for_a_passing_reason_is_tried_again(
    bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    merged = bank.merge(bank.recipe("task_arithmetic", {}))
    full, other = "CUDA error: out of memory", f"{ELSEWHERE} GPU another, and GPU one is here"
    answers = [full, other, "", full, ""]  # to three shards, and twice more to the first

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    bank._paths.clear()
    through = "what shard %d merges comes through host memory: %s"
    with caplog.at_level(logging.WARNING):
        for expected in ([through % (0, full), through % (1, other)], [], [], []):
            bank.localise(merged.manifest, merged.places, lambda _memory: answers.pop(0))
            assert said() == expected
    assert answers == []
    bank._paths.clear()
