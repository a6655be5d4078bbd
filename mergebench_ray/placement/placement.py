"""The one object by which a run is planned and started: every part of a sweep with its node and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import EngineOptions, Sweep
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.transports import READ_DEVICES
from mergebench_ray.placement.packing import pack
from mergebench_ray.placement.parts import ModelSizes, parts_of, scoring_parts
from mergebench_ray.placement.records import Cluster, Part, PartKind, Placed, Record

Judges = Mapping[str, tuple[Judge, int]]
"""Settings and number of parameters of judges, by name."""

_MOST_OF_GPU = 0.9
_MARGIN = 0.02
"""Of a GPU, which nobody has: what parts take is known but roughly, and vLLM starts only where its share is free."""


class Placement(Record):
    """What sits where.

    Attributes:
        cluster: the nodes.
        placed: every part, with its node and devices.
        bank_on_gpu: whether the bank's shards merge on GPUs.
        bank_streams: whether they hold only what is merged there, and bring the rest from host memory with each pass.
    """

    cluster: Cluster
    placed: tuple[Placed, ...]
    bank_on_gpu: bool
    bank_streams: bool = False

    def of(self, kind: PartKind) -> list[Placed]:
        """Where the parts of a kind are, in their order."""
        return sorted((one for one in self.placed if one.part.kind == kind), key=lambda one: one.part.index)

    def on(self, node: int) -> list[Placed]:
        """What is on a node."""
        return [one for one in self.placed if one.node == node]

    def host_memory_on(self, node: int) -> int:
        """What the parts on a node take of its memory."""
        return sum(one.part.host_memory for one in self.on(node))

    def gpu_memory_on(self, node: int, device: int) -> int:
        """What the parts on a device take of its memory."""
        memory = self.cluster.nodes[node].gpu_memory[device]
        here = [one for one in self.on(node) if device in one.devices]
        return sum(max(_taken(one, memory), int(self.utilization(one) * memory)) for one in here)

    def utilization(self, one: Placed) -> float:
        """Share of each of its devices that a part is given as vLLM's `gpu_memory_utilization`; 0 for what needs none.

        Of what others leave, a part that takes the rest has an equal share with its like, but for a margin.
        """
        if not one.part.gpu_rest or not one.devices:
            return one.part.gpu_fraction
        memory_of = self.cluster.nodes[one.node].gpu_memory
        shares = []
        for device in one.devices:
            memory = memory_of[device]
            here = [other for other in self.on(one.node) if device in other.devices]
            alike = sum(other.part.gpu_rest > 0 for other in here)
            others = sum(_taken(other, memory) for other in here if not other.part.gpu_rest)
            shares.append(max((1 - others / memory - _MARGIN) / alike, _taken(one, memory) / memory))
        return min(_MOST_OF_GPU, *shares)

    def engine_options(self, engine: EngineOptions, index: int) -> EngineOptions:
        """An engine's options with the share of its GPU that it is given."""
        share = self.utilization(self.of("engine")[index])
        return engine.model_copy(update={"gpu_memory_utilization": round(share, 3)}) if share else engine

    @property
    def gpus(self) -> int:
        """Devices on which anything is."""
        return len({(one.node, device) for one in self.placed for device in one.devices})

    @property
    def apart(self) -> int:
        """Engines that are not on the one device of every shard, or on several devices."""
        shards = {(one.node, one.devices) for one in self.of("shard")}
        return sum({(one.node, one.devices)} != shards or len(one.devices) != 1 for one in self.of("engine"))

    @property
    def shares_devices(self) -> bool:
        """Whether an engine has a device that another part has, too: they have to start one after the other."""
        users = Counter((one.node, device) for one in self.placed for device in one.devices)
        return any(users[one.node, device] > 1 for one in self.of("engine") for device in one.devices)


def _taken(one: Placed, memory: int) -> int:
    """Bytes that a part takes of a device with so many, at least."""
    found = one.part.on_device(memory)
    assert found is not None
    return found[0]


def find_placement(
    sweep: Sweep, sizes: ModelSizes, judges: Judges, cluster: Cluster, most_steps: int | None = None
) -> Placement | None:
    """A placement of a sweep on a cluster; None where there is none.

    The bank is held on GPUs where it fits beside the engines, else in host memory, from where each candidate is copied;
    rather in host memory where no GPU stays. Where weights are read from GPUs, shards are on engines' devices, with no
    more than what they merge where that is all that fits.
    """
    options: dict[str, Any] = {} if most_steps is None else {"most_steps": most_steps}
    options["beside"] = sweep.engine.transport in READ_DEVICES
    for bank_on_gpu in places_of_the_bank(sweep, cluster):
        for streams in (False, True) if bank_on_gpu and options["beside"] else (False,):
            parts = parts_on(sweep, sizes, judges, cluster, bank_on_gpu, streams)
            placed = pack(parts, cluster, **options)
            if placed is not None:
                return Placement(cluster=cluster, placed=tuple(placed), bank_on_gpu=bank_on_gpu, bank_streams=streams)
    return None


def place_engines(engine: EngineOptions, base: Checkpoint, judges: Judges, cluster: Cluster) -> Placement | list[Part]:
    """A placement of engines and judges without a bank; where there is none, what would have to be placed."""
    parts = scoring_parts(engine, base.num_parameters, base.largest_tensor, judges, gpus=cluster.gpus > 0)
    placed = pack(parts, cluster)
    return parts if placed is None else Placement(cluster=cluster, placed=tuple(placed), bank_on_gpu=False)


def places_of_the_bank(sweep: Sweep, cluster: Cluster) -> list[bool]:
    """Whether the bank may be on GPUs, the better choice first."""
    if not cluster.gpus:
        return [False]
    return [False, True] if cluster.only_spot_gpus else [True, False]


def parts_on(
    sweep: Sweep, sizes: ModelSizes, judges: Judges, cluster: Cluster, bank_on_gpu: bool, streams: bool = False
) -> list[Part]:
    """Everything that a sweep starts on such a cluster."""
    return parts_of(
        *(sweep, sizes, judges),
        gpus=cluster.gpus > 0,
        bank_on_gpu=bank_on_gpu,
        bank_streams=streams,
        nodes=len(cluster.nodes),
        has_own_store=cluster.has_own_store,
    )
