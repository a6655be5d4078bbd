"""Weights that come in buckets are those that were asked for, and take the memory of two of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from mergebench_ray.families import family_of
from mergebench_ray.weights import stream as module
from mergebench_ray.weights import together as together_module
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.manifest import WeightBucket, WeightTensor
from mergebench_ray.weights.memory_file import MappedFiles
from mergebench_ray.weights.stream import WeightStream, cut
from mergebench_ray.weights.together import Together, together

FAMILY = family_of("llama")
SHAPES = {
    "model.layers.0.input_layernorm.weight": (2,),
    "model.layers.0.mlp.up_proj.weight": (4, 2),
    "model.layers.1.input_layernorm.weight": (2,),
    "model.layers.1.mlp.up_proj.weight": (4, 2),
    "model.layers.2.mlp.down_proj.weight": (40, 2),
    "model.layers.2.mlp.up_proj.weight": (12, 2),
    "model.norm.weight": (3,),
}
TENSORS = tuple(WeightTensor(name, shape, (), "") for name, shape in SHAPES.items())


def content(name: str) -> torch.Tensor:
    return torch.arange(prod(SHAPES[name]), dtype=torch.bfloat16) + [*SHAPES].index(name)


class Source:
    """Gives tensors' bytes in runs of a length that fits nothing, and notes what it was asked."""

    def __init__(self, length: int = 7, less: int = 0, more: int = 0) -> None:
        self.length, self.less, self.more = length, less, more
        self.asked: list[str] = []
        self.is_closed = False

    def __call__(self, tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        self.asked += [tensor.name for tensor in tensors]
        every = torch.cat([content(tensor.name) for tensor in tensors]).view(torch.uint8).numpy()
        every = np.concatenate([every[: len(every) - self.less], np.zeros(self.more, np.uint8)])
        try:
            for first in range(0, len(every), self.length):
                yield every[first : first + self.length]
        finally:
            self.is_closed = True


def stream(source: Source, most: int = 20, beside: Together | None = None) -> WeightStream:
    return WeightStream("version", "bfloat16", TENSORS, FAMILY, source, 2 * most, beside)


def read(bucket: WeightBucket, files: MappedFiles | None = None) -> dict[str, torch.Tensor]:
    files = files or MappedFiles()
    return {
        tensor.name: files.read(tensor.shape, torch.bfloat16, list(map(astuple, tensor.pieces)))
        for tensor in bucket.tensors
    }


def memory_files() -> int:
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("mergebench_ray" in link for link in links)


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Memory files of whatever this process did before; nothing is kept from there."""
    monkeypatch.setattr(module, "_free", [])
    yield memory_files()
    for slot in module._free:
        slot.close()


def names(runs: Sequence[Sequence[WeightTensor]]) -> list[list[str]]:
    return [[tensor.name.removeprefix("model.").removeprefix("layers.") for tensor in run] for run in runs]


def test_buckets_are_cut_between_layers_and_inside_one_that_is_larger() -> None:
    one = ["0.input_layernorm.weight", "0.mlp.up_proj.weight"]
    other = ["1.input_layernorm.weight", "1.mlp.up_proj.weight"]
    large, rest = ["2.mlp.down_proj.weight"], ["2.mlp.up_proj.weight", "norm.weight"]
    assert names(cut(TENSORS, FAMILY, 19)) == [one, other, large, [rest[0]], [rest[1]]]
    assert names(cut(TENSORS, FAMILY, 30)) == [one + other, large, rest]
    assert names(cut(TENSORS, FAMILY, 1000)) == [one + other + large + rest]


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
@pytest.mark.parametrize("most", [1, 30, 1000])
def test_every_tensor_comes_once_with_its_own_bits(length: int, most: int) -> None:
    found: dict[str, torch.Tensor] = {}
    buckets = stream(Source(length), most).buckets([*SHAPES])
    for bucket in buckets:
        assert len(found) + len(bucket.tensors) == len(SHAPES) or not bucket.is_last
        found |= {name: values.clone() for name, values in read(bucket).items()}
    assert [*found] == [*SHAPES]
    assert all(torch.equal(values.flatten(), content(name)) for name, values in found.items())


def test_only_what_is_named_is_asked_for_and_nothing_where_nothing_is() -> None:
    source = Source()
    wanted = [*SHAPES][3:5]
    [*buckets] = stream(source, 1000).buckets(wanted[::-1])
    assert source.asked == wanted == [tensor.name for bucket in buckets for tensor in bucket.tensors]
    source.asked.clear()
    assert [*stream(source).buckets([])] == [WeightBucket(())]
    assert source.asked == []


def test_all_buckets_lie_in_memory_for_two_which_further_streams_use_again(others: int) -> None:
    for _ in range(3):
        paths = [bucket.tensors[0].pieces[0].path for bucket in stream(Source(), most=1).buckets([*SHAPES])]
        assert len(paths) == len(SHAPES)
        assert paths[::2] == paths[:1] * 4
        assert paths[1::2] == paths[1:2] * 3
    assert memory_files() - others == 2


def test_memory_for_a_very_large_tensor_is_given_back(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKET_BYTES", 8)
    monkeypatch.setattr(module, "_KEPT_BYTES", 100)
    assert len([*stream(Source(), most=1).buckets([*SHAPES])]) == len(SHAPES)
    assert memory_files() == others
    assert len([*stream(Source(), most=1).buckets([*SHAPES][:3])]) == 3
    assert memory_files() - others == 2


def test_the_next_bucket_is_written_while_one_is_used_and_no_more_than_that() -> None:
    asked = [threading.Event() for _ in SHAPES]

    def noted(tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        for event, tensor in zip(asked, tensors, strict=True):
            event.set()
            yield content(tensor.name).view(torch.uint8).numpy()

    buckets = WeightStream("version", "bfloat16", TENSORS, FAMILY, noted, bucket_bytes=1).buckets([*SHAPES])
    for index, bucket in enumerate(buckets):
        assert all(event.wait(10) for event in asked[: index + 2])
        time.sleep(0.02)
        assert not any(event.is_set() for event in asked[index + 2 :])
        [(name, values)] = read(bucket).items()
        assert torch.equal(values.flatten(), content(name))


def test_whoever_stops_early_leaves_nothing_at_work(others: int) -> None:
    source = Source()
    buckets = stream(source, most=1).buckets([*SHAPES])
    next(buckets)
    next(buckets)
    buckets.close()
    assert source.is_closed
    assert memory_files() - others == 2


@pytest.mark.parametrize(("source", "message"), [(Source(less=1), "fewer"), (Source(more=1), "more")])
def test_bytes_that_do_not_make_up_the_tensors_are_an_error_before_the_last_bucket(
    source: Source, message: str
) -> None:
    came: list[bool] = []
    with pytest.raises(RuntimeError, match=f"{message} bytes came"):
        came.extend(bucket.is_last for bucket in stream(source).buckets([*SHAPES]))
    assert came == [False] * 3


def test_what_a_source_fails_with_arrives_and_no_bucket_holds_anything_of_it() -> None:
    def failing(tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        yield from Source()(tensors[:1])
        raise FileNotFoundError("gone")

    came: list[str] = []
    weights = WeightStream("version", "bfloat16", TENSORS, FAMILY, failing, bucket_bytes=2)
    with pytest.raises(FileNotFoundError, match="gone"):
        came.extend(bucket.tensors[0].name for bucket in weights.buckets([*SHAPES]))
    assert came == [*SHAPES][:1]


# Several engines of a node


def loaded(source: Source, beside: Together | None, names: Collection[str] = tuple(SHAPES)) -> dict[str, torch.Tensor]:
    """What an engine has after a load in buckets of one tensor, each looked at a while after it has come."""
    found, files = dict[str, torch.Tensor](), MappedFiles()
    for bucket in stream(source, 1, beside).buckets(names):
        time.sleep(0.002)
        found |= {name: values.clone() for name, values in read(bucket, files).items()}
    return found


def test_engines_know_who_loads_with_them_on_their_node() -> None:
    first, alone, second, third = together(["a", "b", "a", "a"])
    assert alone is None
    assert first is not None
    assert (first.others, first.is_first) == (2, True)
    assert second == third == Together(first.meeting, 2, False)
    assert together(["a", "b"]) == [None, None]
    assert together(["a", "a"])[0] != together(["a", "a"])[0]


def test_weights_come_to_a_node_once_for_all_of_its_engines() -> None:
    sources = [Source() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(loaded, sources, together(["a"] * 3)))
    assert [source.asked for source in sources] == [[*SHAPES], [], []]
    for one in found:
        assert [*one] == [*SHAPES]
        assert all(torch.equal(values.flatten(), content(name)) for name, values in one.items())


def test_an_engine_takes_of_what_comes_what_has_changed_for_it_and_reads_for_itself_what_does_not_come() -> None:
    sources, names = [Source() for _ in range(3)], [*SHAPES]
    wanted = [names[1:], names[2:4], names[:2]]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(loaded, sources, together(["a"] * 3), wanted))
    assert [source.asked for source in sources] == [wanted[0], [], wanted[2]]
    assert [[*one] for one in found] == wanted
    assert all(torch.equal(values.flatten(), content(name)) for one in found for name, values in one.items())


def test_engines_that_do_not_meet_read_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together_module, "_MEET_SECONDS", 0.05)
    for beside in together(["a", "a"]):
        source = Source()
        assert [*loaded(source, beside)] == source.asked == [*SHAPES]


def test_an_engine_that_ends_while_it_loads_holds_up_no_other() -> None:
    first, second = together(["a", "a"])
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(loaded, Source(), first)
        buckets = stream(Source(), 1, second).buckets([*SHAPES])
        next(buckets)
        buckets.close()
        assert [*loading.result(20)] == [*SHAPES]


def test_where_weights_stop_to_come_no_engine_of_the_node_takes_them_for_whole() -> None:
    source = Source(less=1)
    with ThreadPoolExecutor(2) as pool:
        first, second = [pool.submit(loaded, source, beside) for beside in together(["a", "a"])]
        with pytest.raises(RuntimeError, match="fewer bytes came"):
            first.result(20)
        with pytest.raises(RuntimeError, match="the engine that had the weights of this node come has ended or failed"):
            second.result(20)


def test_nobody_else_is_told_where_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together_module, "_MEET_SECONDS", 0.1)
    monkeypatch.setattr(together_module, "_is_own", lambda _other: False)
    sources = [Source(), Source()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(loaded, sources, together(["a", "a"])))
    assert [source.asked for source in sources] == [[*SHAPES]] * 2
