"""Finding a place for every part: greedy where there is plenty of room, exact search where it is tight and small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mergebench_ray.placement.records import WHOLE, Cluster, Part, PartKind, Placed

_MOST_STEPS = 20_000
_MAY_GO = frozenset({"engine", "judge"})
"""What holds nothing that would be missed: this goes to nodes that may be taken away, all else to the others."""
_ORDER = {"object store": 0, "shard": 1, "driver": 2, "engine": 2, "judge": 2, "calibration": 3}


@dataclass
class _Room:
    """What is left of a node."""

    host: int
    cores: float
    gpu_bytes: list[int]
    gpu_shares: list[int]
    gpu_users: list[Counter[PartKind]]


def pack(
    parts: Sequence[Part], cluster: Cluster, most_steps: int = _MOST_STEPS, *, beside: bool = False
) -> list[Placed] | None:
    """A place for each part, in the order of the parts; None where none was found.

    Parts are spread: each goes where most is left, engines and judges first to nodes that may be taken away, all else
    first to those that stay. Where that fails they are packed as tightly as they go, and where
    that fails all ways are tried, as far as `most_steps` go. So None is certain for few parts on few nodes.

    Args:
        parts: what has to be placed.
        cluster: where.
        most_steps: places that are tried one by one before it gives up.
        beside: spread engines, but put shards beside them, where there is room.
    """
    if not _could_fit(parts, cluster):
        return None
    order = sorted(range(len(parts)), key=lambda index: _weight(parts[index]))
    return (
        (_greedy(parts, _by_size(order, parts), cluster, tight=False, beside=True) if beside else None)
        or _greedy(parts, _by_size(order, parts), cluster, tight=False)
        or _greedy(parts, _by_size(order, parts), cluster, tight=True)
        or _greedy(parts, order, cluster, tight=True)
        or _Search(parts, order, cluster, most_steps).run()
    )


def _could_fit(parts: Sequence[Part], cluster: Cluster) -> bool:
    """Whether all parts together have room; what none of them has is known without trying."""
    host = sum(node.host_memory for node in cluster.nodes)
    gpu = sum(memory for node in cluster.nodes for memory in node.gpu_memory)
    return sum(part.host_memory for part in parts) <= host and sum(part.gpus * part.gpu_memory for part in parts) <= gpu


def _weight(part: Part) -> tuple[int, int, int, int]:
    """What there is no more than one of, or little choice for, before the rest; large ones first."""
    return _ORDER[part.kind], -part.gpus, -part.gpu_memory, -part.host_memory


def _by_size(order: Sequence[int], parts: Sequence[Part]) -> list[int]:
    """What takes several whole devices first, then what is largest."""
    return sorted(
        order,
        key=lambda index: (
            parts[index].node is None,
            -parts[index].gpus if parts[index].gpus > 1 else 0,
            -max(parts[index].gpu_fraction, parts[index].gpu_rest),
            -parts[index].gpu_memory,
            -parts[index].host_memory,
        ),
    )


def _rooms(cluster: Cluster) -> list[_Room]:
    return [
        _Room(
            node.host_memory,
            float("inf") if node.cores is None else node.cores,
            list(node.gpu_memory),
            [WHOLE] * len(node.gpu_memory),
            [Counter() for _ in node.gpu_memory],
        )
        for node in cluster.nodes
    ]


def _devices(
    part: Part, room: _Room, memory: Sequence[int], tight: bool, beside: bool = False
) -> tuple[int, ...] | None:
    """The devices of a node that have room for a part: those with most left, or with least, or beside its like."""
    if part.gpus == 0:
        return ()
    fitting = []
    for device, total in enumerate(memory):
        taken = part.on_device(total)
        if taken and taken[0] <= room.gpu_bytes[device] and taken[1] <= room.gpu_shares[device]:
            fitting.append(device)
    if len(fitting) < part.gpus:
        return None
    fitting.sort(
        key=lambda device: (
            0 if tight else _company(part, room, device, beside),
            room.gpu_bytes[device] if tight else -room.gpu_bytes[device],
            device,
        )
    )
    return tuple(sorted(fitting[: part.gpus]))


def _company(part: Part, room: _Room, device: int, beside: bool) -> int:
    """How little a device is wanted for what is on it.

    Engines that take what is left want no other there; beside shards all of them want no other and then a shard, and
    shards an engine.
    """
    users = room.gpu_users[device]
    if part.kind == "engine" and (beside or part.gpu_rest):
        return 2 * users["engine"] + (beside and users["shard"] == 0)
    return int(beside and part.kind == "shard" and users["engine"] == 0)


def _put(part: Part, room: _Room, memory: Sequence[int], devices: Iterable[int], host: int, sign: int) -> None:
    """Take room for a part, or with a sign of -1 give it back."""
    room.host -= sign * host
    room.cores -= sign * part.cores
    for device in devices:
        taken = part.on_device(memory[device])
        assert taken is not None
        room.gpu_bytes[device] -= sign * taken[0]
        room.gpu_shares[device] -= sign * taken[1]
        room.gpu_users[device][part.kind] += sign


def _greedy(
    parts: Sequence[Part], order: Sequence[int], cluster: Cluster, *, tight: bool, beside: bool = False
) -> list[Placed] | None:
    """Place one part after the other, and never take one back."""
    rooms = _rooms(cluster)
    found: dict[int, Placed] = {}
    for index in order:
        part = parts[index]
        host = part.host_memory
        choices: list[tuple[bool, int, int, int, int, tuple[int, ...]]] = []
        for place, (node, room) in enumerate(zip(cluster.nodes, rooms, strict=True)):
            if part.node not in (None, place) or host > room.host or part.cores > room.cores:
                continue
            devices = _devices(part, room, node.gpu_memory, tight, beside)
            if devices is not None:
                left = min((room.gpu_bytes[device] for device in devices), default=room.host)
                unwanted = node.spot != (part.kind in _MAY_GO)
                company = 0 if tight else max((_company(part, room, device, beside) for device in devices), default=0)
                choices.append((unwanted, company, (left if tight else -left), len(choices), place, devices))
        if not choices:
            return None
        *_, place, devices = min(choices)
        _put(part, rooms[place], cluster.nodes[place].gpu_memory, devices, host, 1)
        found[index] = Placed(part=part, node=place, devices=devices)
    return [found[index] for index in range(len(parts))]


class _Search:
    """All ways, depth first; nodes and devices that are alike are tried once, and so are equal parts in any order."""

    def __init__(self, parts: Sequence[Part], order: Sequence[int], cluster: Cluster, most_steps: int) -> None:
        self._parts, self._order, self._cluster = parts, list(order), cluster
        self._rooms = _rooms(cluster)
        self._left = most_steps
        self._found: dict[int, Placed] = {}

    def run(self) -> list[Placed] | None:
        if not self._parts:
            return []
        if not self._place(0):
            return None
        return [self._found[index] for index in range(len(self._parts))]

    def _place(self, at: int) -> bool:
        if at == len(self._order):
            return True
        index = self._order[at]
        part, seen = self._parts[index], set[object]()
        for place in range(self._first_place(at), len(self._rooms)):
            room, memory = self._rooms[place], self._cluster.nodes[place].gpu_memory
            host = part.host_memory
            if part.node not in (None, place) or host > room.host or part.cores > room.cores:
                continue
            alike = (room.host, room.cores, memory, tuple(room.gpu_bytes), tuple(room.gpu_shares))
            if part.node is None and alike in seen:
                continue
            seen.add(alike)
            for devices in self._choices(part, room, memory):
                self._left -= 1
                if self._left < 0:
                    return False
                _put(part, room, memory, devices, host, 1)
                self._found[index] = Placed(part=part, node=place, devices=devices)
                if self._place(at + 1):
                    return True
                _put(part, room, memory, devices, host, -1)
        return False

    def _first_place(self, at: int) -> int:
        """Where the search begins: equal parts come in the order of their nodes."""
        if at == 0:
            return 0
        part, before = self._parts[self._order[at]], self._parts[self._order[at - 1]]
        equal = part.model_copy(update={"index": before.index, "name": before.name}) == before
        return self._found[self._order[at - 1]].node if equal else 0

    def _choices(self, part: Part, room: _Room, memory: Sequence[int]) -> Iterable[tuple[int, ...]]:
        """Which devices of a node: sets of them that leave different room."""
        if part.gpus == 0:
            return [()]
        fitting = []
        for device, total in enumerate(memory):
            taken = part.on_device(total)
            if taken and taken[0] <= room.gpu_bytes[device] and taken[1] <= room.gpu_shares[device]:
                fitting.append(device)
        return _different(fitting, part.gpus, lambda d: (memory[d], room.gpu_bytes[d], room.gpu_shares[d]))


def _different(
    devices: Sequence[int], count: int, state: Callable[[int], tuple[int, int, int]]
) -> Iterator[tuple[int, ...]]:
    """Sets of `count` devices, one for each combination of states."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for device in devices:
        groups.setdefault(state(device), []).append(device)
    lists = list(groups.values())

    def choose(at: int, left: int) -> Iterator[tuple[int, ...]]:
        if left == 0:
            yield ()
        elif at < len(lists):
            for taken in range(min(left, len(lists[at])), -1, -1):
                for rest in choose(at + 1, left - taken):
                    yield (*lists[at][:taken], *rest)

    return choose(0, count)
