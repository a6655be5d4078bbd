"""Setting aside what a placement says, so that each actor starts where it was planned, or nothing starts at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from mergebench_ray.errors import InputError
from mergebench_ray.placement.placement import Placement
from mergebench_ray.placement.records import WHOLE, PartKind, Placed, gibibytes

_ACTORS = ("shard", "engine", "judge")
# Leaves room for the search's trials, which take next to nothing but not nothing.
_CPUS_OF_A_CORE = 0.9
_WAIT_SECONDS = 5.0
_ASK_SECONDS = 2

Options = dict[str, Any]


@dataclass(frozen=True)
class Reservation:
    """Ray's options for each actor of a run: where it goes, and what it is counted as.

    Attributes:
        options: by kind and index of the part; empty for actors that Ray may put anywhere.
        groups: what is set aside for each node of a placement.
        bundles: the parts in each bundle of a node's group.
    """

    options: dict[tuple[PartKind, int], Options] = field(default_factory=dict)
    groups: dict[int, PlacementGroup] = field(default_factory=dict)
    bundles: Mapping[int, list[list[Placed]]] = field(default_factory=dict)

    def of(self, kind: PartKind, index: int) -> Options:
        """Options of an actor."""
        return dict(self.options.get((kind, index), {}))

    def all_of(self, kind: PartKind) -> list[Options]:
        """Options of all actors of a kind, in their order."""
        return [dict(self.options[key]) for key in sorted(self.options) if key[0] == kind]

    def leave(self, node: str, goes_on: Callable[[], bool]) -> list[PlacementGroup] | None:
        """Set what is aside on a node that is to be taken away aside on another one, once one has room.

        Args:
            node: Ray's id of it.
            goes_on: asked now and then whether to wait still, as it is not gone yet.

        Returns:
            what was set aside before, for whoever lets it go when nothing is in it; None where nothing has changed.
        """
        there = [index for index, group in self.groups.items() if node in _nodes_of(group)]
        # Ray brings back judges, with what is set aside for them, and knows of no other place.
        can_move = not any(one.part.kind == "judge" for index in there for part in self.bundles[index] for one in part)
        before = {index: self.groups[index] for index in there}
        fresh = {index: _set_aside(self.groups[index].bundle_specs, None) for index in there if can_move}
        while not (can_move and all(group.wait(_ASK_SECONDS) for group in fresh.values())):
            if not goes_on():
                for group in fresh.values():
                    remove_placement_group(group)
                return None
            if not can_move:
                time.sleep(_ASK_SECONDS)
        for index, group in fresh.items():
            self.groups[index] = group
            self._place(index)
        return list(before.values())

    def _place(self, node: int) -> None:
        """Say of the parts of a node that they go where its group is."""
        for index, bundle in enumerate(self.bundles[node]):
            where = PlacementGroupSchedulingStrategy(self.groups[node], placement_group_bundle_index=index)
            for one in bundle:
                self.options[_key(one)]["scheduling_strategy"] = where


ANYWHERE = Reservation()


@contextmanager
def reserved(placement: Placement) -> Iterator[Reservation]:
    """Set aside each node's part of a placement until the block ends.

    A node's part is a placement group, kept whole, whose bundles are its devices (with all that sits on each) and its
    host memory. So two parts share a device only where they were planned to. A node that is lost has its part moved to
    another as a whole, where one has room.

    Raises:
        InputError: if a node cannot give it within seconds, as where others were quicker.
    """
    bundles: dict[int, list[list[Placed]]] = {}
    places = Reservation(bundles=bundles)
    try:
        for node in range(len(placement.cluster.nodes)):
            target = placement.cluster.nodes[node].node_id or None
            for bundle in _bundles(placement, node):
                places.options.update({_key(one): _counted(placement, one) for one in bundle})
                if _resources(placement, bundle):
                    bundles.setdefault(node, []).append(bundle)
                elif target is not None:
                    # Where Ray counts no memory, there is nothing of a shard in host memory that it could set aside.
                    there = NodeAffinitySchedulingStrategy(target, soft=True)
                    for one in bundle:
                        places.options[_key(one)]["scheduling_strategy"] = there
            if node in bundles:
                places.groups[node] = _set_aside([_resources(placement, bundle) for bundle in bundles[node]], target)
                places._place(node)
        _wait(places.groups, placement)
        yield places
    finally:
        for group in places.groups.values():
            with suppress(Exception):  # the cluster may be gone
                remove_placement_group(group)


def _set_aside(resources: list[dict[str, float]], target: str | None) -> PlacementGroup:
    group: PlacementGroup = placement_group(resources, strategy="STRICT_PACK", _soft_target_node_id=target)
    return group


def _nodes_of(group: PlacementGroup) -> Collection[str]:
    """Ray's ids of the nodes that a group is on."""
    nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return nodes.values()


def _key(one: Placed) -> tuple[PartKind, int]:
    return one.part.kind, one.part.index


def _bundles(placement: Placement, node: int) -> Iterator[list[Placed]]:
    """The actors of a node: those without a device, then those of each device, or of several that one has whole."""
    actors = [one for one in placement.on(node) if one.part.kind in _ACTORS]
    if here := [one for one in actors if not one.devices]:
        yield here
    by_devices: dict[tuple[int, ...], list[Placed]] = {}
    for one in actors:
        if one.devices:
            by_devices.setdefault(one.devices, []).append(one)
    yield from by_devices.values()


def _resources(placement: Placement, bundle: list[Placed]) -> dict[str, float]:
    counted = [_counted(placement, one) for one in bundle]
    found = {
        "CPU": sum(one["num_cpus"] for one in counted),
        "GPU": float(len(bundle[0].devices)),
        "memory": float(sum(one["memory"] for one in counted)),
    }
    return {name: amount for name, amount in found.items() if amount}


def _counted(placement: Placement, one: Placed) -> Options:
    gpus = float(len(one.devices))
    if gpus == 1:
        taken = one.part.on_device(placement.cluster.nodes[one.node].gpu_memory[one.devices[0]])
        assert taken is not None
        gpus = taken[1] / WHOLE
    return {
        "num_cpus": _CPUS_OF_A_CORE * one.part.cores,
        "num_gpus": gpus,
        "memory": one.part.host_memory if placement.cluster.nodes[one.node].counts_memory else 0,
    }


def _wait(groups: Mapping[int, PlacementGroup], placement: Placement) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    for node, group in groups.items():
        if not group.wait(timeout_seconds=max(1, round(until - time.monotonic()))):
            raise InputError(
                f"Ray did not set aside {gibibytes(placement.host_memory_on(node))} on "
                f"{placement.cluster.nodes[node].name} within {_WAIT_SECONDS:g} s, since others use it: wait for them, "
                "or give another cluster"
            )
