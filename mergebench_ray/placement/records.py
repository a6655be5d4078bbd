"""What a placement is made of: nodes, the parts of a run, and what sits where. Plain data, in bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

WHOLE = 10_000
"""Ray counts GPUs in ten-thousandths, and so do shares of a device here."""
_MOST_NAMED = 4

PartKind = Literal["driver", "object store", "shard", "engine", "judge", "calibration"]


class Record(BaseModel):
    """Plain data that does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(Record):
    """A machine of a cluster, or what is left of one.

    Attributes:
        name: as people call it.
        host_memory: bytes that may be used.
        gpu_memory: bytes of each of its GPUs.
        cores: that may be used; None where nobody has said.
        node_id: Ray's; empty where the node is one that is only planned for.
        spot: whether it may be taken away at any time.
        counts_memory: whether Ray can set aside memory on it.
        host: the machine that it is on, where several nodes may share one; empty for one of its own.
    """

    name: str
    host_memory: int = Field(ge=0)
    gpu_memory: tuple[int, ...] = ()
    cores: float | None = None
    node_id: str = ""
    spot: bool = False
    counts_memory: bool = True
    host: str = ""


class Cluster(Record):
    """The nodes that a run is planned for; the driver is on the first.

    Attributes:
        nodes: them.
        has_own_store: whether Ray's object store is counted apart from what nodes have, as in a running cluster.
    """

    nodes: tuple[Node, ...]
    has_own_store: bool = False

    @classmethod
    def alike(
        cls, nodes: int, host_memory: int, gpus: int = 0, gpu_memory: int = 0, cores: float | None = None
    ) -> Cluster:
        """A cluster of equal nodes."""
        devices = (gpu_memory,) * gpus
        return cls(
            nodes=tuple(
                Node(name=f"node {index + 1}", host_memory=host_memory, gpu_memory=devices, cores=cores)
                for index in range(nodes)
            )
        )

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(len(node.gpu_memory) for node in self.nodes)

    @property
    def only_spot_gpus(self) -> bool:
        """Whether every GPU may be taken away, and not every node."""
        return all(node.spot for node in self.nodes if node.gpu_memory) and not all(node.spot for node in self.nodes)

    @property
    def notes(self) -> list[str]:
        """What is taken for granted of its nodes, a line at most."""
        uncounted = [node for node in self.nodes if not node.counts_memory]
        if not uncounted:
            return []
        names = ", ".join(f"{node.name}: {gibibytes(node.host_memory)}" for node in uncounted[:_MOST_NAMED])
        others = f", and {len(uncounted) - _MOST_NAMED} others" if len(uncounted) > _MOST_NAMED else ""
        return [
            f"Ray was told of no memory on {len(uncounted)} of {len(self.nodes)} nodes: what is free there now is "
            f"planned with ({names}{others}), and none of it is set aside; ray start --memory BYTES says what there is"
        ]

    def __str__(self) -> str:
        counted: dict[tuple[int, tuple[int, ...]], int] = {}
        for node in self.nodes:
            key = (node.host_memory, tuple(sorted(node.gpu_memory)))
            counted[key] = counted.get(key, 0) + 1
        return ", ".join(f"{count} x {_described(*kind)}" for kind, count in counted.items())


class Part(Record):
    """Something that takes room on one node.

    Attributes:
        kind: what it is.
        index: which of its kind; of judges, its place among them.
        name: as people call it.
        host_memory: bytes of host memory.
        gpus: devices that it takes a share of, all on its node.
        gpu_memory: bytes that it needs on each at least.
        gpu_fraction: share of each device's memory that it takes for itself; 0 for just what it needs.
        gpu_rest: share of each device's memory that it takes at least, and beyond that what others leave; 0 for what
            takes no more than it needs.
        gpu_share: ten-thousandths of each device that are set aside at least, whatever its bytes.
        cores: that it is counted as.
        output_bytes: merged weights that it holds, which come from there to engines on other nodes.
        node: the only node that it may be on; None for any.
    """

    kind: PartKind
    index: int = 0
    name: str
    host_memory: int = 0
    gpus: int = 0
    gpu_memory: int = 0
    gpu_fraction: float = 0.0
    gpu_rest: float = 0.0
    gpu_share: int = 0
    cores: float = 0.0
    output_bytes: int = 0
    node: int | None = None

    def on_device(self, memory: int) -> tuple[int, int] | None:
        """Bytes and ten-thousandths that it takes of a device with so many bytes; None where it cannot run on one."""
        least = max(self.gpu_memory, int(self.gpu_rest * memory))
        taken = int(self.gpu_fraction * memory) if self.gpu_fraction else least
        if not self.gpu_memory <= taken <= memory or not memory:
            return None
        return taken, max(self.gpu_share, -(-taken * WHOLE // memory))


class Placed(Record):
    """A part and its place.

    Attributes:
        part: the part.
        node: index of the node.
        devices: its devices on the node.
    """

    part: Part
    node: int
    devices: tuple[int, ...] = ()


def gibibytes(count: int) -> str:
    """A byte count as people read it."""
    return f"{count / (1 << 30):.1f} GiB" if count >= (1 << 30) // 10 else f"{count / 2**20:.0f} MiB"


def _described(host_memory: int, gpu_memory: tuple[int, ...]) -> str:
    if not gpu_memory:
        return gibibytes(host_memory)
    kinds = sorted(set(gpu_memory))
    gpus = " and ".join(f"{gpu_memory.count(one)} x {gibibytes(one)}" for one in kinds)
    return f"({gibibytes(host_memory)} and GPUs {gpus})"
