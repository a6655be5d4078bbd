"""One part of the bank: an actor that reads its own slices, holds them, and merges them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mergebench_ray.bank.companions import CompanionArrays
from mergebench_ray.bank.layout import Layout, Overlap
from mergebench_ray.bank.output import Output
from mergebench_ray.bank.passes import pass_key
from mergebench_ray.bank.shard_statistics import ShardStatistics
from mergebench_ray.bank.solving import Solutions
from mergebench_ray.bank.work import Work, segments_of
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.methods import Solver
from mergebench_ray.steps import Steps
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.device_memory import DeviceMemory, this_node

_SENT = 1 << 22
"""Entries that are sent to a reader on another node before it is looked whether they are those still."""


@dataclass(frozen=True)
class ShardPlace:
    """Where a shard is and what it holds.

    Attributes:
        node: Ray's id of its node.
        path: memory file of its merged parameters, for processes of that node.
        start: first merged parameter in the flat order.
        stop: one past the last.
        life: of the actor; another one once it has begun again.
        changes: how many times it has changed its merged parameters in this life.
        problem: what makes it slower than it could be, or None.
        publishes: whether they are in that file only once `publish` has brought them there from a GPU.
    """

    node: str
    path: str
    start: int
    stop: int
    life: str
    changes: int
    problem: str | None = None
    publishes: bool = False


@dataclass(frozen=True)
class ShardMerge:
    """What a merge took on one shard.

    Attributes:
        seconds: wall time of the pass.
        bytes_moved: bytes read and written.
        problem: why the pass could not be compiled, or None.
        place: where the shard was then, and what it held.
        read_seconds: in which it read its range first; 0 where that was there.
    """

    seconds: float
    bytes_moved: int
    problem: str | None
    place: ShardPlace
    read_seconds: float


class NoLongerHeldError(RuntimeError):
    """A shard was asked for what it merged, and has begun again since, or merged something else."""


class BankShard(ShardStatistics):
    """Holds base [n] and task vectors [K, n], bf16, on its device, and merged parameters [n] there and in host memory.

    Args:
        base: the base's checkpoint.
        specialists: checkpoints in the order of their sorted names.
        layout: the flat order.
        index: which shard.
        shards: how many there are.
        threads: threads of the passes on a CPU.
        use_gpu: whether to hold the weights on the GPU that Ray assigned.
        steps: told what it is at; None where nobody asks.
        streams: whether a GPU has room for what is merged alone (`ShardWeights`).
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        layout: Layout,
        index: int,
        shards: int,
        threads: int,
        use_gpu: bool,
        steps: Steps | None = None,
        streams: bool = False,
    ) -> None:
        super().__init__(base, specialists, layout, index, shards, threads, use_gpu, steps, streams)
        size = self._range[1] - self._range[0]
        self._output = Output(size, self._device)
        self._held: dict[tuple[str, int], str] = {}
        self._companions = CompanionArrays(layout, *self._range, self._memory)
        self._solutions = Solutions([base, *self._checkpoints], self._device, self._steps)
        self._life, self._changes = uuid.uuid4().hex, 0

    def load(self) -> ShardPlace:
        """Read this shard's slices of all checkpoints, unless they are there.

        Raises:
            InputError: naming checkpoint and tensor where a weight is NaN or infinite.
        """
        self._load()
        return self.where()

    def where(self) -> ShardPlace:
        """Where this shard is, and what it holds."""
        output = self._output
        there = (this_node(), output.path, *self._range, self._life, self._changes)
        return ShardPlace(*there, output.problem or self._not_pinned, output.publishes)

    def share(self, place: ShardPlace) -> DeviceMemory:
        """Where merged parameters lie on the device, for one process; complete from the end of a merge to the next.

        Args:
            place: where the shard was when it merged them, and what it held.

        Raises:
            NoLongerHeldError: it has begun again since, or merged something else.
        """
        self._require(place)
        return self._output.shared()

    def publish(self, place: ShardPlace) -> None:
        """Bring merged parameters into host memory, where they are not there; as of `share`."""
        self._require(place)
        self._output.publish()
        self._require(place)  # a merge that began meanwhile wrote where this copied from

    def merge(self, work: Work) -> ShardMerge:
        """Merge into the output those tensors whose content is not there already; `solve` does the others."""
        began, was_loaded = time.perf_counter(), self._loaded
        self.load()
        read_seconds = 0.0 if was_loaded else time.perf_counter() - began
        todo = [(overlap, index) for overlap, index in self._changed(work) if not _is_solved(work, overlap)]
        for overlap, _ in todo:
            self._held.pop((overlap.tensor.name, overlap.tensor.part), None)
        self._changes += bool(todo)
        segments = segments_of(work, todo, self._range[0])
        companion_bytes = 0
        problem = None
        if segments:
            with self._passing(pass_key(work.kernel, torch.bfloat16)):
                merge = self._pass(work.kernel, work.scalars[0], torch.bfloat16)
                problem = merge.problem
                companions = self._companions.of(work.companions)
                companion_bytes = sum(array.itemsize for array in companions)
                merge.run(self._base, self._vectors(), segments, self._output.tensor, self._threads, companions)
                self._output.written((segment.start, segment.stop) for segment in segments)
        for overlap, index in todo:
            self._held[overlap.tensor.name, overlap.tensor.part] = work.fingerprints[index]
        entries = sum(segment.stop - segment.start for segment in segments)
        moved = entries * ((len(self._checkpoints) + 2) * torch.bfloat16.itemsize + companion_bytes)
        return ShardMerge(time.perf_counter() - began, moved, problem, self.where(), read_seconds)

    def solve(self, work: Work) -> dict[str, NDArray[Any]]:
        """Solve for the groups of tensors that begin in this shard, where their content is not there already.

        Returns:
            int16 bit patterns of the tensors of groups that reach into other shards, for `place`. Those are solved for
            every time, as no shard knows what the others hold.
        """
        assert work.solver is not None
        changed = {(overlap.tensor.name, overlap.tensor.part): index for overlap, index in self._changed(work)}
        whole = {o.tensor.name for o in self._layout.overlaps(*self._range) if o.stop - o.start == prod(o.tensor.shape)}
        todo = []
        for group in self._groups_beginning_here(work.solver):
            if not whole.issuperset(group) or any((name, 0) in changed for name in group):
                todo.append(group)
        for key in changed:
            self._held.pop(key, None)
        self._changes += bool(todo)
        elsewhere = {}
        for group, solved in self._solutions.of(work.solver, todo, self._threads):
            for name, values in zip(group, solved, strict=True):
                self._place(name, values)
                if not whole.issuperset(group):
                    elsewhere[name] = values.view(torch.int16).numpy()
                elif (name, 0) in changed:
                    self._held[name, 0] = work.fingerprints[changed[name, 0]]
        return elsewhere

    def place(self, solved: Mapping[str, NDArray[Any]]) -> None:
        """Take this shard's part of tensors that others have solved for."""
        self._changes += 1
        for name, bits in solved.items():
            self._place(name, torch.tensor(bits).view(torch.bfloat16))

    def merged(self, place: ShardPlace, ranges: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
        """Bytes of merged parameters, for a reader on another node.

        What is yielded is the memory itself: it must have been copied before the next is asked for, and is of that
        merge if asking for the next, or the end, raises nothing.

        Args:
            place: where the shard was when it merged them, and what it held.
            ranges: which of its parameters, as [first, one past the last).

        Raises:
            NoLongerHeldError: it is not there any more, or has begun to merge something else.
        """
        self.publish(place)
        memory: Bytes = self._output.published.view(torch.uint8).numpy()
        for start, stop in ranges:
            for first in range(start, stop, _SENT):
                self._require(place)
                yield memory[2 * first : 2 * min(first + _SENT, stop)]
        self._require(place)

    def _require(self, place: ShardPlace) -> None:
        if place != self.where():
            raise NoLongerHeldError("the shard has begun again since it merged, or merged something else")

    def close(self) -> None:
        """Give the merged parameters' memory back, where the process goes on."""
        self._output.close()

    def _groups_beginning_here(self, solver: Solver) -> list[tuple[str, ...]]:
        starts = {tensor.name: tensor.start for tensor in reversed(self._layout.merged)}
        return [group for group in solver.groups if self._range[0] <= starts[group[0]] < self._range[1]]

    def _place(self, name: str, values: Tensor) -> None:
        """Write this shard's part of a tensor, given whole, bf16 [count]."""
        for overlap in self._layout.overlaps(*self._range):
            if overlap.tensor.name == name:
                first, count = overlap.first, overlap.stop - overlap.start
                start = overlap.start - self._range[0]
                self._output.tensor[start : start + count] = values[first : first + count]
                self._output.written([(start, start + count)])

    def _changed(self, work: Work) -> list[tuple[Overlap, int]]:
        """Find this shard's part of each tensor whose content must change, with its index in the layout."""
        index_of = {(tensor.name, tensor.part): i for i, tensor in enumerate(self._layout.merged)}
        changed = []
        for overlap in self._layout.overlaps(*self._range):
            key = (overlap.tensor.name, overlap.tensor.part)
            if self._held.get(key) != work.fingerprints[index_of[key]]:
                changed.append((overlap, index_of[key]))
        return changed


def _is_solved(work: Work, overlap: Overlap) -> bool:
    return work.solver is not None and overlap.tensor.name in work.solver
