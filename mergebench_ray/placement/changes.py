"""Why a sweep does not fit, and the smallest change with which it would."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mergebench_ray.config import Sweep
from mergebench_ray.placement.packing import pack
from mergebench_ray.placement.parts import LEAST_OF_GPU, ModelSizes, calibration_kinds
from mergebench_ray.placement.placement import Judges, Placement, find_placement, parts_on, places_of_the_bank
from mergebench_ray.placement.records import Cluster, Part, gibibytes

NODES_TO_COME = "ask for nodes first where the cluster starts them on demand (cluster/README.md)"
_SHARDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_PARALLEL = (2, 4, 8)
_SHARES_OF_GPU = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_LARGER = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)
_FEW_STEPS = 300  # of a search for a change: many are tried
_MOST_TRIED = 2000


def what_is_lacking(sweep: Sweep, sizes: ModelSizes, judges: Judges, cluster: Cluster) -> str:
    """Why there is no placement, and the smallest change with which there is one, as the end of a line."""
    change = _smallest_change(_Case((), sweep, judges, cluster), sizes)
    remedy = f"use {change}" if change else "take more and larger nodes, or a smaller model"
    bank_on_gpu = places_of_the_bank(sweep, cluster)[-1]
    too_little = lack(parts_on(sweep, sizes, judges, cluster, bank_on_gpu), cluster)
    # Of a running cluster nobody knows what would come: no autoscaler tells Ray what nodes it could start.
    to_come = f"{NODES_TO_COME}, or " if cluster.has_own_store else ""
    return f"{too_little}: {to_come}{remedy}"


def shards_on_gpus(sweep: Sweep, sizes: ModelSizes, judges: Judges, placement: Placement) -> int | None:
    """With how many shards a bank that is in host memory would be on GPUs; None where that is not to be had."""
    if (placement.bank_on_gpu and not placement.bank_streams) or not placement.cluster.gpus:
        return None
    for count in _other_shards(sweep, placement.cluster):
        parts = parts_on(_with_shards(sweep, count), sizes, judges, placement.cluster, True)
        if pack(parts, placement.cluster, _FEW_STEPS) is not None:
            return count
    return None


def lack(parts: list[Part], cluster: Cluster) -> str:
    """What there is too little of, the first that can be said for certain, as the beginning of a line."""
    largest = max(parts, key=lambda part: part.host_memory)
    most = max(node.host_memory for node in cluster.nodes)
    if largest.host_memory > most:
        return f"{largest.name} takes {gibibytes(largest.host_memory)} of host memory, a node has {gibibytes(most)}"
    on_gpus = [part for part in parts if part.gpus]
    devices = [memory for node in cluster.nodes for memory in node.gpu_memory]
    for part in on_gpus:
        if not any(part.on_device(memory) for memory in devices):
            has = f"a GPU has {gibibytes(max(devices))}"
            if part.gpu_fraction:
                has += f", of which {part.gpu_fraction:g} are its (gpu_memory_utilization)"
            return f"{part.name} takes {gibibytes(part.gpu_memory)} of GPU memory, {has}"
        if all(len(node.gpu_memory) < part.gpus for node in cluster.nodes):
            most_gpus = max(len(node.gpu_memory) for node in cluster.nodes)
            return f"{part.name} takes {part.gpus} GPUs of one node, which has {most_gpus}"
    cores = sum(node.cores or float("inf") for node in cluster.nodes)
    engines = sum(part.cores for part in parts)
    if engines > cores:
        return f"its {engines:g} engines are counted as a core each, and there are {cores:g}"
    host, gpu = sum(part.host_memory for part in parts), sum(part.gpus * part.gpu_memory for part in on_gpus)
    return (
        f"its parts take {gibibytes(host)} of host memory"
        + (f" and {gibibytes(gpu)} of GPU memory" if gpu else "")
        + f" together, and there is no way to place them on {cluster}"
    )


@dataclass(frozen=True)
class _Case:
    """A sweep, its judges, and the nodes it is to run on, after changes in words."""

    changes: tuple[str, ...]
    sweep: Sweep
    judges: Judges
    cluster: Cluster

    def after(self, change: str, **changed: Any) -> _Case:
        """The same after a further change."""
        return replace(self, changes=(*self.changes, change), **changed)

    def with_shards(self, counts: Iterable[int]) -> Iterator[_Case]:
        """The same, then with other numbers of shards beside."""
        yield self
        for count in counts:
            if count != self.sweep.bank.shards:
                yield self.after(f"bank.shards: {count}", sweep=_with_shards(self.sweep, count))


def _smallest_change(case: _Case, sizes: ModelSizes) -> str | None:
    """The first change with which there is a placement: one that costs little, else two or three together."""
    for one in islice(_changed(case, sizes), _MOST_TRIED):
        if find_placement(one.sweep, sizes, one.judges, one.cluster, _FEW_STEPS) is not None:
            return " and ".join(one.changes)
    return None


def _changed(case: _Case, sizes: ModelSizes) -> Iterator[_Case]:
    yield from islice(case.with_shards(_other_shards(case.sweep, case.cluster)), 1, None)
    kinds: list[Callable[[_Case, ModelSizes], Iterator[_Case]]]
    kinds = [_of_engines, _of_judges, _of_number, _of_nodes, _without_judges, _without_data, _of_memory]
    for kind in kinds:
        for one in kind(case, sizes):
            yield from one.with_shards(_other_shards(case.sweep, one.cluster))
    for together in (2, 3):
        for some in itertools.combinations(kinds, together):
            cases = [case]
            for kind in some:
                # What changes most helps soonest.
                cases = [further for one in cases for further in list(kind(one, sizes))[-1:-6:-2]]
            for one in cases:
                yield from one.with_shards((4, 8, 16))


def _of_engines(case: _Case, sizes: ModelSizes) -> Iterator[_Case]:
    if not case.cluster.gpus:
        return
    for size in _PARALLEL:
        divides = all(heads % size == 0 or size % heads == 0 for heads in sizes.heads.values())
        if size > case.sweep.engine.tensor_parallel_size and divides:
            changed = _with_engine(case.sweep, tensor_parallel_size=size)
            yield case.after(f"engine.tensor_parallel_size: {size}", sweep=changed)
    for share in _other_shares(case.sweep.engine.gpu_memory_utilization):
        changed = _with_engine(case.sweep, gpu_memory_utilization=share)
        yield case.after(f"engine.gpu_memory_utilization: {share:g}", sweep=changed)


def _of_judges(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    for name, (judge, parameters) in case.judges.items() if case.cluster.gpus else ():
        for share in _other_shares(judge.gpu_memory_utilization):
            changed = judge.model_copy(update={"gpu_memory_utilization": share})
            change = f"evaluation.judges.{name}.gpu_memory_utilization: {share:g}"
            yield case.after(change, judges={**case.judges, name: (changed, parameters)})


def _of_number(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    for count in _fewer(case.sweep.engine.count):
        yield case.after(f"engine.count: {count}", sweep=_with_engine(case.sweep, count=count))


def _of_nodes(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    for nodes in _more(len(case.cluster.nodes)):
        yield case.after(f"--nodes {nodes}", cluster=_with_nodes(case.cluster, nodes))


def _without_judges(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    for name in case.judges:
        left = {one: given for one, given in case.judges.items() if one != name}
        yield case.after(f"evaluation.judges.{name}: null", judges=left)


def _without_data(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    costly = [name for name in case.sweep.methods if set(calibration_kinds(_only(case.sweep, [name])))]
    others = [name for name in case.sweep.methods if name not in costly]
    if costly and others:
        yield case.after(f"no methods that see data ({', '.join(costly)})", sweep=_only(case.sweep, others))


def _of_memory(case: _Case, _sizes: ModelSizes) -> Iterator[_Case]:
    most = max(node.host_memory for node in case.cluster.nodes)
    for factor in _LARGER:
        memory = max(1, math.ceil(factor * most / (1 << 30)))
        every = tuple(node.model_copy(update={"host_memory": memory << 30}) for node in case.cluster.nodes)
        yield case.after(f"--host-memory {memory}", cluster=case.cluster.model_copy(update={"nodes": every}))


def _other_shares(given: float | None) -> list[float]:
    now = given or LEAST_OF_GPU
    return sorted((one for one in _SHARES_OF_GPU if one != now), key=lambda one: abs(one - now))


def _other_shards(sweep: Sweep, cluster: Cluster) -> list[int]:
    """Numbers of shards to try: no more than a few for each device or node."""
    now, most = sweep.bank.shards, 4 * max(2, len(cluster.nodes), cluster.gpus)
    return [n for n in _SHARDS if now < n <= most] + [n for n in reversed(_SHARDS) if n < now]


def _fewer(count: int) -> Iterator[int]:
    while count > 1:
        count = count - 1 if count <= 16 else count * 3 // 4
        yield count


def _more(nodes: int) -> Iterable[int]:
    return dict.fromkeys([*range(nodes + 1, nodes + 9), 2 * nodes, 4 * nodes, 8 * nodes])


def _with_shards(sweep: Sweep, shards: int) -> Sweep:
    return sweep.model_copy(update={"bank": sweep.bank.model_copy(update={"shards": shards})})


def _with_engine(sweep: Sweep, **changes: Any) -> Sweep:
    return sweep.model_copy(update={"engine": sweep.engine.model_copy(update=changes)})


def _only(sweep: Sweep, methods: list[str]) -> Sweep:
    return sweep.model_copy(update={"methods": {name: sweep.methods[name] for name in methods}})


def _with_nodes(cluster: Cluster, nodes: int) -> Cluster:
    """A cluster with further nodes like the last."""
    last = cluster.nodes[-1]
    further = tuple(last.model_copy(update={"name": f"node {index + 1}"}) for index in range(len(cluster.nodes), nodes))
    return cluster.model_copy(update={"nodes": (*cluster.nodes, *further)})
