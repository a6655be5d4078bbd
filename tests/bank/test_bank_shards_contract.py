"""What is asked of shards wherever they live: the contract of `Shards`, for actors and for this very process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, NoLongerHeldError, ShardPlace
from mergebench_ray.bank.shards import ActorShards, LocalShards, Shards
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.memory_file import map_memory
from tiny_models import tiny_llama, tiny_specialist

COUNT = 3
Make = Callable[[Mapping[str, Checkpoint]], Shards]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve(str(tiny_llama(tmp_path_factory.mktemp("base"), tied=False)))


@pytest.fixture(scope="module")
def specialists(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("specialists")
    return {name: resolve(str(tiny_specialist(folder / name, base.folder, seed=i))) for i, name in enumerate("ab")}


@pytest.fixture(scope="module", params=[pytest.param("actors", marks=pytest.mark.ray), "this process"])
def make(request: pytest.FixtureRequest, base: Checkpoint) -> Make:
    layout = Layout.of(base)
    if request.param == "actors":
        request.getfixturevalue("ray_cluster")
        return lambda models: ActorShards(base, models, layout, COUNT, 1, False)
    return lambda models: LocalShards([BankShard(base, models, layout, i, COUNT, 1, False) for i in range(COUNT)])


@pytest.fixture(scope="module")
def loaded(make: Make, specialists: dict[str, Checkpoint]) -> Iterator[tuple[Shards, list[ShardPlace]]]:
    shards = make(specialists)
    yield shards, shards.load(lambda _read: None)
    shards.close()


def test_shards_come_in_order_and_cover_the_model(loaded: tuple[Shards, list[ShardPlace]], base: Checkpoint) -> None:
    _, places = loaded
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
    assert (len(places), places[-1].stop) == (COUNT, Layout.of(base).size)


def test_a_call_reaches_every_shard_and_answers_come_in_their_order(loaded: tuple[Shards, list[ShardPlace]]) -> None:
    shards, places = loaded
    sizes = [place.stop - place.start for place in places]
    assert shards.call(BankShard.progress) == sizes
    assert [place.stop - place.start for place in shards.call(BankShard.where)] == sizes


def test_a_call_of_one_shard_is_answered_by_it_with_its_arguments(loaded: tuple[Shards, list[ShardPlace]]) -> None:
    shards, places = loaded
    every = shards.call(BankShard.histograms)
    assert not np.array_equal(every[0], every[1])
    assert all(np.array_equal(shards.call_one(i, BankShard.histograms), every[i]) for i in range(len(places)))
    bits = {"model.norm.weight": torch.full((64,), 2.0, dtype=torch.bfloat16).view(torch.int16).numpy()}
    shards.call(BankShard.place, bits)
    place = shards.call_one(COUNT - 1, BankShard.where)
    size = place.stop - place.start
    last = _came(shards.stream(COUNT - 1, place, [(size - 64, size)]))
    assert np.array_equal(last, bits["model.norm.weight"])


def test_a_stream_brings_what_lies_in_the_shards_memory_and_only_what_is_asked_for(
    loaded: tuple[Shards, list[ShardPlace]],
) -> None:
    shards, _ = loaded
    for index, place in enumerate(shards.call(BankShard.where)):
        size = place.stop - place.start
        memory = map_memory(place.path, size).view(torch.int16).numpy()
        ranges = [(5, size - 3), (size - 2, size - 1)]
        came = _came(shards.stream(index, place, ranges))
        assert np.array_equal(came, np.concatenate([memory[start:stop] for start, stop in ranges]))


def test_a_stream_is_refused_once_the_shard_holds_something_else(
    loaded: tuple[Shards, list[ShardPlace]],
) -> None:
    shards, _ = loaded
    before = shards.call_one(0, BankShard.where)
    stream = shards.stream(0, before, [(0, 4), (4, 8)])
    shards.call(BankShard.place, {})
    for refused in (stream, shards.stream(0, before, [])):
        with pytest.raises((NoLongerHeldError, ray.exceptions.RayTaskError), match="merged something else"):
            list(refused)
    place = shards.call_one(0, BankShard.where)
    assert len(_came(shards.stream(0, place, [(0, 4), (4, 8)]))) == 8


def _came(stream: Iterator[Bytes]) -> NDArray[np.int16]:
    return np.concatenate([part.copy() for part in stream]).view(np.int16)


def test_reports_while_loading_only_grow(make: Make, specialists: dict[str, Checkpoint], base: Checkpoint) -> None:
    shards = make(specialists)
    seen: list[int] = []
    shards.load(seen.append)
    shards.close()
    assert seen == sorted(seen)
    assert all(0 <= read <= Layout.of(base).size for read in seen)


def test_an_input_error_of_a_shard_arrives_as_itself(
    make: Make, specialists: dict[str, Checkpoint], base: Checkpoint, tmp_path: Path
) -> None:
    broken = tiny_specialist(tmp_path / "broken", base.folder, seed=3)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    shards = make({**specialists, "b": resolve(str(broken))})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*NaN or infinity") as caught:
        shards.load(lambda _read: None)
    assert "\n" not in str(caught.value)
    shards.close()


def test_closed_shards_let_their_memory_go(make: Make, specialists: dict[str, Checkpoint]) -> None:
    shards = make(specialists)
    paths = [Path(place.path) for place in shards.load(lambda _read: None)]
    assert all(path.exists() for path in paths)
    shards.close()
    deadline = time.monotonic() + 60
    while any(path.exists() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(path.exists() for path in paths)
