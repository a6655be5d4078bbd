"""The driver's handle of the bank."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import ray
import torch
from torch import Tensor

from mergebench_ray.bank.calibrator import Calibrator, calibration_record, require_calibrator
from mergebench_ray.bank.inner_products import products_by_tensor
from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.magnitudes import magnitudes_by_tensor, totals_by_tensor
from mergebench_ray.bank.reading import on_devices, read_merged, shard_runs
from mergebench_ray.bank.shard import BankShard, ShardPlace
from mergebench_ray.bank.shards import ActorShards, LocalShards, Shards
from mergebench_ray.bank.transforms import identity_of, still_there, transformed
from mergebench_ray.bank.window_worker import WindowWorker
from mergebench_ray.bank.work import plan_work
from mergebench_ray.checkpoints import Checkpoint, fit_tensors
from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.kernels import BlockFunction, Magnitudes, Scalars, warn_not_compiled
from mergebench_ray.machine import usable_cores
from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    InnerProducts,
    Statistics,
    Transform,
    complete_parameters,
    get_method,
    method_source,
    parse_parameters,
)
from mergebench_ray.progress import Progress, silent
from mergebench_ray.weights.device_memory import ELSEWHERE, Opener, this_node
from mergebench_ray.weights.manifest import JoinedWeights, Piece, WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import MappedFiles
from mergebench_ray.weights.stream import WeightStream
from mergebench_ray.weights.together import Together

logger = logging.getLogger(__name__)

_VALUES_KEPT = 2
"""Counts of values that are kept; each is of one choice of hyper-parameters."""


@dataclass(frozen=True)
class Merged:
    """A merged candidate.

    Attributes:
        manifest: where its tensors lie.
        seconds: wall time of the merge, with what had to be prepared for it.
        bytes_moved: bytes that the fused pass read and wrote; 0 where nothing had changed.
        places: where its shards were then, and what they held.
    """

    manifest: WeightManifest
    seconds: float
    bytes_moved: int
    places: tuple[ShardPlace, ...] = ()


class Bank:
    """Base and task vectors of a model, spread over shards. Made by `Bank.load`.

    With its shards in actors it may be pickled and used anywhere.

    There is one output: a merge replaces the one before it, so readers must be done with that. Not for several
    threads at once.

    Attributes:
        specialists: sorted names.
        num_layers: layers of the model.
        layout: flat order of the merged tensors.
        base_digest: SHA-256 of the base's weights.
        specialist_digests: SHA-256 of each specialist's weights.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        layout: Layout,
        shards: Shards,
        calibrator: Calibrator | None,
        say: Callable[[str], None] = logger.warning,
        progress: Progress = silent,
    ) -> None:
        self._say = say
        self._progress = progress
        self.specialists = sorted(specialists)
        self.num_layers = layout.num_layers
        self.layout = layout
        self.base_digest = base.digest()
        self.specialist_digests = {name: specialists[name].digest() for name in self.specialists}
        self.family = base.family
        self._base_reference = str(base.ref)
        self._references = {name: str(specialists[name].ref) for name in self.specialists}
        self._models = [base, *(specialists[name] for name in self.specialists)]
        self._shards = shards
        self._calibrator = calibrator
        self._last: Merged | None = None
        self.bytes_moved = 0
        self._inner_products: Mapping[str, InnerProducts] | None = None
        self._paths: dict[str, tuple[str, str]] = {}
        self._totals: dict[str, Mapping[str, Sequence[int]]] = {}
        self._values: dict[str, Mapping[str, Sequence[Magnitudes]]] = {}
        self._transformed: dict[Hashable, tuple[Calibrated, ...]] = {}
        self._magnitudes: Mapping[str, Sequence[Magnitudes]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Who is told of losses lives in the process that loaded the bank; each opens memory for itself.
        return {**self.__dict__, "_say": logger.warning, "_progress": silent, "_paths": {}}

    @classmethod
    def load(
        cls,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        *,
        shards: int = 1,
        threads: int | None = None,
        use_gpu: bool | None = None,
        streams: bool = False,
        in_process: bool = False,
        where: Sequence[Mapping[str, Any]] = (),
        calibrator: Calibrator | None = None,
        begun: Callable[[Sequence[str]], None] = lambda _actors: None,
        progress: Progress | None = None,
        say: Callable[[str], None] = logger.warning,
    ) -> Bank:
        """Start the shards and let each read its own slices.

        Args:
            base: the base.
            specialists: by name.
            shards: number of shards, spread over the nodes; the merged weights do not depend on it.
            threads: threads of each shard's passes; None shares a node's cores between its shards.
            use_gpu: hold the weights on GPUs, one a shard; None if the cluster has enough.
            streams: hold there what is merged alone; passes bring all else from host memory a window at a time.
            in_process: hold the weights in this process, without Ray.
            where: Ray's options for the actor of each shard, as a reservation says; else they are spread.
            calibrator: for methods that take calibration data.
            begun: called with Ray's ids of the shards' actors, before they read anything.
            progress: called with (fraction done, what is happening), also while a method's `prepare` takes seconds.
            say: called with a line about a shard that was lost and what that took.

        Raises:
            InputError: models that do not fit together, or NaN or infinity in a weight, naming checkpoint and tensor.
        """
        ordered = fit_tensors(base, specialists).specialists
        layout = Layout.of(base, ordered.values())
        if threads is None:
            nodes = 1 if in_process else sum(node["Alive"] for node in ray.nodes())
            threads = max(1, usable_cores() // -(-shards // nodes))
        if in_process:
            made: Shards = LocalShards(
                [BankShard(base, ordered, layout, index, shards, threads, False) for index in range(shards)]
            )
        else:
            if use_gpu is None:
                use_gpu = ray.cluster_resources().get("GPU", 0) >= shards
            made = actors = ActorShards(base, ordered, layout, shards, threads, use_gpu, where, say, streams=streams)
            begun(actors.ids)
        try:
            places = made.load(_parameters_read(layout.size, progress))
            for problem in {place.problem for place in places if place.problem}:
                logger.warning(problem)  # where the shard itself would say so, nobody reads it
            return cls(base, ordered, layout, made, calibrator, say, progress or silent)
        except BaseException:
            made.close()
            raise

    @property
    def actor_shards(self) -> ActorShards:
        """Its shards, of a bank that is in actors."""
        assert isinstance(self._shards, ActorShards)
        return self._shards

    @property
    def statistics(self) -> Statistics:
        """Answers the questions that methods ask while they prepare."""
        return _BankStatistics(self)

    def recipe(self, method: str, parameters: Mapping[str, Any]) -> Recipe:
        """The complete recipe of a merge of this bank's models.

        Raises:
            InputError: unknown method or wrong hyper-parameter, naming key, value and rule; no calibration data for a
                method that takes some.
        """
        completed = complete_parameters(method, parameters, self.specialists, self.num_layers)
        return Recipe(
            method=method,
            method_source=method_source(method),
            parameters=completed,
            base=self._base_reference,
            specialists=self._references,
            base_digest=self.base_digest,
            specialist_digests=self.specialist_digests,
            merged=self._models[0].merged_parts,
            calibration=calibration_record(self._calibrator, method, completed),
        )

    def merge(self, recipe: Recipe) -> Merged:
        """Merge in place of the last merge; tensors that stay the same are left alone.

        Raises:
            InputError: if the recipe is of other models.
        """
        began = time.perf_counter()
        if (recipe.base_digest, recipe.specialist_digests) != (self.base_digest, self.specialist_digests):
            raise InputError("recipe: made for another base or other specialists (digests differ); load those")
        mine = self.recipe(recipe.method, recipe.parameters)
        if (difference := recipe.difference(mine)) is not None:
            raise InputError(f"recipe: not what would be merged ({difference}); give what it was made with")
        method = get_method(recipe.method)
        parameters = parse_parameters(recipe.method, recipe.parameters)
        prepared = method.prepare(parameters, self.statistics)
        contents = {"base": self.base_digest, **{f"+{k}": v for k, v in self.specialist_digests.items()}}
        work = plan_work(self.layout, method, parameters, prepared, self.specialists, contents)
        done = self._shards.call(BankShard.merge, work)
        places = [one.place for one in done]
        if work.solver is not None:
            # The solutions of groups that lie in several shards go to all of them.
            across = {
                name: bits for solved in self._shards.call(BankShard.solve, work) for name, bits in solved.items()
            }
            if across:
                self._shards.call(BankShard.place, across)
            before, places = places, self._shards.call(BankShard.where)
            if [one.life for one in places] != [one.life for one in before]:
                return self.merge(recipe)  # one has begun again in between
        for problem in {one.problem for one in done if one.problem}:
            warn_not_compiled(problem)  # where the shard said so, nobody reads it
        for index, one in enumerate(done):
            if one.read_seconds:
                self._say(f"shard {index} of the bank was lost: it was back after {one.read_seconds:.0f} s")
        manifest = self._manifest(recipe.digest, work.fingerprints, places)
        moved = sum(one.bytes_moved for one in done)
        self.bytes_moved += moved
        self._last = Merged(manifest, time.perf_counter() - began, moved, tuple(places))
        return self._last

    def holds(self, merged: Merged) -> bool:
        """Whether a merge can be read still: no shard has begun again since, or merged something else."""
        return self._shards.call(BankShard.where) == list(merged.places)

    def localise(
        self,
        manifest: WeightManifest,
        places: Sequence[ShardPlace],
        opener: Opener | None = None,
        together: Together | None = None,
    ) -> WeightManifest:
        """The same tensors, for readers on the node this is called on.

        Tensors that lie as a whole on a device which the reader opens are read there; all others in host memory. Where
        a shard is on another node, they come over a connection of their own, those that are asked for and no others:
        `read_merged` says what that may raise.

        Args:
            manifest: of a merge.
            places: where the shards were then, and what they held.
            opener: opens a shard's memory for the reader; None where it reads host memory alone.
            together: other readers of this node that were told of it, too.
        """
        paths = [self._opened(index, place, opener) for index, place in enumerate(places)] if opener else []
        lie_there = on_devices(manifest, self.layout, places, paths)
        others = replace(manifest, tensors=tuple(one for one in manifest.tensors if one.name not in lie_there))
        if not others.tensors and lie_there:
            return replace(manifest, tensors=tuple(lie_there.values()))
        in_host_memory = self._in_host_memory(others, places, together)
        if not lie_there:
            return in_host_memory
        tensors = tuple(lie_there.get(one.name, one) for one in manifest.tensors)
        first = replace(manifest, tensors=tuple(lie_there.values()))
        return JoinedWeights(manifest.version, manifest.dtype, tensors, (first, in_host_memory))

    def _in_host_memory(
        self, manifest: WeightManifest, places: Sequence[ShardPlace], together: Together | None
    ) -> WeightManifest:
        here = this_node()
        runs = shard_runs(self.layout, places)
        shards = {run.shard for tensor in manifest.tensors for run in runs[tensor.name]}
        for index in sorted(shards):
            if places[index].publishes and places[index].node == here:
                self._shards.call_one(index, BankShard.publish, places[index])
        if all(places[index].node == here for index in shards):
            return manifest
        read = partial(read_merged, self._shards, self.layout, places)
        of = (manifest.version, manifest.dtype, manifest.tensors)
        return WeightStream(*of, self.family, read, together=together)

    def _opened(self, index: int, place: ShardPlace, opener: Opener) -> str:
        """The path of a shard's memory on its device, once it is open; empty where it cannot be, or not yet."""
        path, before = self._paths.get(place.life, ("", ""))
        if path or before.startswith(ELSEWHERE):
            return path
        problem = f"{ELSEWHERE} memory of another node"
        if place.node == this_node():
            memory = self._shards.call_one(index, BankShard.share, place)
            path, problem = memory.path, opener(memory)
        if problem:
            path = ""
            if problem != before:
                logger.warning("what shard %d merges comes through host memory: %s", index, problem)
        self._paths[place.life] = path, problem
        return path

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The last merge's tensors, one at a time; each may be read until the next is asked for.

        Raises:
            RuntimeError: if this handle has merged nothing yet, or as `read_merged` says of shards on other nodes.
        """
        if self._last is None:
            raise RuntimeError("nothing merged yet")
        manifest = self.localise(self._last.manifest, self._last.places)
        files = MappedFiles()
        with closing(manifest.buckets([tensor.name for tensor in manifest.tensors])) as buckets:
            for tensor in itertools.chain.from_iterable(bucket.tensors for bucket in buckets):
                yield tensor.name, files.read(tensor.shape, torch.bfloat16, list(map(astuple, tensor.pieces)))

    def close(self) -> None:
        """End the shards; the weights are gone."""
        self._shards.close()

    def _manifest(self, version: str, fingerprints: Sequence[str], places: Sequence[ShardPlace]) -> WeightManifest:
        runs = shard_runs(self.layout, places)
        shapes: dict[str, tuple[int, ...]] = {}
        prints: dict[str, str] = {}
        for tensor, fingerprint in zip(self.layout.merged, fingerprints, strict=True):
            shapes[tensor.name] = tensor.shape
            prints[tensor.name] = prints.get(tensor.name, "") + fingerprint
        pieces = {
            name: tuple(Piece(places[run.shard].path, run.start, run.count) for run in runs[name]) for name in shapes
        }
        tensors = tuple(WeightTensor(name, shapes[name], pieces[name], prints[name]) for name in shapes)
        return WeightManifest(version, "bfloat16", tensors)


class _BankStatistics:
    """Answers a method's questions by adding up what the shards answer."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    @property
    def specialists(self) -> Sequence[str]:
        """Sorted names."""
        return self._bank.specialists

    @property
    def num_entries(self) -> int:
        """Entries of a task vector that count for global statistics."""
        return self._bank.layout.size + self._bank.layout.streamed_size

    def magnitude_histograms(self) -> Tensor:
        """Exact counts of the magnitudes of every task vector, int64 [K, 32768]."""
        answers = self._bank._shards.call(BankShard.histograms)
        return torch.stack([torch.tensor(answer) for answer in answers]).sum(0)

    def magnitudes(self) -> Mapping[str, Sequence[Magnitudes]]:
        """Exact counts of the magnitudes of each task vector in each merged tensor, by its name; made once."""
        bank = self._bank
        if bank._magnitudes is None:
            bank._magnitudes = magnitudes_by_tensor(bank._shards.call(BankShard.magnitudes))
        return bank._magnitudes

    def values(
        self, function: BlockFunction, scalars: Mapping[str, Sequence[Scalars]]
    ) -> Mapping[str, Sequence[Magnitudes]]:
        """Magnitudes of an element-wise function in each merged tensor; the last are kept."""
        bank, key = self._bank, repr((function, scalars))
        if key not in bank._values:
            if len(bank._values) == _VALUES_KEPT:
                bank._values.pop(next(iter(bank._values)))
            bank._values[key] = magnitudes_by_tensor(bank._shards.call(BankShard.values, function, scalars))
        return bank._values[key]

    def totals(self, function: BlockFunction, scalars: Sequence[Scalars]) -> Mapping[str, Sequence[int]]:
        """Sums of an element-wise function over each merged tensor; made once for the same scalars."""
        bank, key = self._bank, repr((function, scalars))
        if key not in bank._totals:
            bank._totals[key] = totals_by_tensor(bank._shards.call(BankShard.totals, function, scalars))
        return bank._totals[key]

    def inner_products(self) -> Mapping[str, InnerProducts]:
        """Exact inner products of base and task vectors, by name of each merged tensor; made once."""
        bank = self._bank
        if bank._inner_products is None:
            bank._inner_products = products_by_tensor(bank._shards.call(BankShard.inner_products))
        return bank._inner_products

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """A statistic on disk, made first if it is not there."""
        return require_calibrator(self._bank._calibrator, request.kind).statistics(request)

    def transformed(self, transform: Transform) -> tuple[Calibrated, ...]:
        """What a transform makes of the task vectors, made first if it is not there."""
        bank = self._bank
        identity = identity_of(transform)
        if identity not in bank._transformed or not still_there(bank._transformed[identity]):
            base, *specialists = bank._models
            worker = WindowWorker(base, specialists, usable_cores(), 1, False)
            bank._transformed[identity] = transformed(worker, bank.layout, transform, bank._progress)
        return bank._transformed[identity]

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over the entries."""
        return sum(self._bank._shards.call(BankShard.total, function, scalars))


def _parameters_read(size: int, progress: Progress | None) -> Callable[[int], None]:
    """Turn a count of parameters into a line of progress."""

    def report(done: int) -> None:
        if progress is not None:
            percent = 10 * (10 * done // max(size, 1))
            progress(done / max(size, 1), f"loading the bank: {percent} % of {size / 1e6:.0f} M parameters")

    return report
