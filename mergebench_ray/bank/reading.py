"""Merged tensors as readers get at them: where each lies in the shards, and how it comes from those on other nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import ShardPlace
from mergebench_ray.bank.shards import Shards
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.device_memory import this_node
from mergebench_ray.weights.manifest import Piece, WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import map_memory


@dataclass(frozen=True)
class ShardRun:
    """A run of a tensor's elements in a shard.

    Attributes:
        shard: index of it.
        start: first of the shard's merged parameters.
        count: number of them.
    """

    shard: int
    start: int
    count: int


def shard_runs(layout: Layout, places: Sequence[ShardPlace]) -> dict[str, tuple[ShardRun, ...]]:
    """Where each merged tensor lies, by its name."""
    runs: dict[str, tuple[ShardRun, ...]] = {}
    for tensor in layout.merged:
        for index, place in enumerate(places):
            first, last = max(tensor.start, place.start), min(tensor.stop, place.stop)
            if first < last:
                run = ShardRun(index, first - place.start, last - first)
                runs[tensor.name] = (*runs.get(tensor.name, ()), run)
    return runs


def on_devices(
    manifest: WeightManifest, layout: Layout, places: Sequence[ShardPlace], paths: Sequence[str]
) -> dict[str, WeightTensor]:
    """Tensors of a merge of which every element lies in a device's memory that is open, with their pieces there.

    Args:
        manifest: of the merge.
        layout: the flat order.
        places: where each shard was.
        paths: of each shard's memory on its device; empty where it is not open.
    """
    if not any(paths):
        return {}
    runs = shard_runs(layout, places)
    return {
        one.name: replace(one, pieces=tuple(Piece(paths[run.shard], run.start, run.count) for run in runs[one.name]))
        for one in manifest.tensors
        if all(paths[run.shard] for run in runs[one.name])
    }


def read_merged(
    shards: Shards, layout: Layout, places: Sequence[ShardPlace], tensors: Sequence[WeightTensor]
) -> Iterator[Bytes]:
    """Bytes of merged tensors, one after the other, from memory of this node or over a connection.

    Args:
        shards: the shards.
        layout: the flat order.
        places: where each shard was when it merged them, and what it held.
        tensors: which.

    Yields:
        runs that may be read until the next is asked for.

    Raises:
        NoLongerHeldError: a shard on another node has begun again since, or merged something else; where it says so
            itself, Ray's error around it.
        StoppedError: no connection from another node to this one holds.
        OSError: a shard on this node is gone.
    """
    here = this_node()
    by_tensor = shard_runs(layout, places)
    every = itertools.chain.from_iterable(by_tensor[tensor.name] for tensor in tensors)
    for index, runs in itertools.groupby(every, key=lambda run: run.shard):
        place, ranges = places[index], _ranges(runs)
        if place.node == here:
            memory = map_memory(place.path, place.stop - place.start).view(torch.uint8).numpy()
            for start, stop in ranges:
                yield memory[2 * start : 2 * stop]
        else:
            yield from shards.stream(index, place, ranges)


def _ranges(runs: Iterable[ShardRun]) -> list[tuple[int, int]]:
    """Runs as [first, one past the last), neighbours as one."""
    ranges: list[tuple[int, int]] = []
    for run in runs:
        start = ranges.pop()[0] if ranges and ranges[-1][1] == run.start else run.start
        ranges.append((start, run.start + run.count))
    return ranges
