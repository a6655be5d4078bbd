"""The nodes that there are: this machine, or those of a running Ray; the only module of planning that asks Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from mergebench_ray.errors import InputError
from mergebench_ray.machine import available_memory, gpu_memory, usable_cores
from mergebench_ray.placement.records import Cluster, Node

T = TypeVar("T")
_PROBE_SECONDS = 60.0
_MARKET = "ray.io/market-type"


def this_machine() -> Cluster:
    """The machine that this runs on, with the memory that is free now."""
    node = Node(
        name="this machine", host_memory=available_memory(), gpu_memory=gpu_memory(), cores=float(usable_cores())
    )
    return Cluster(nodes=(node,))


def connects_to_cluster(address: str | None) -> bool:
    """Whether a run with this address uses a Ray that is there already."""
    import ray  # seconds, for whoever only plans for machines to come

    return (address or os.environ.get("RAY_ADDRESS", "local")) != "local" or ray.is_initialized()


def running_cluster() -> Cluster:
    """The nodes of the Ray that this process is connected to, the driver's first, with what others have left of them.

    Those that are to be taken away are none of them.

    Raises:
        InputError: a node of which Ray was told more GPUs than it has, or that does not answer; the driver's own is to
            be taken away.
    """
    import ray

    from mergebench_ray.ray_nodes import present_nodes

    here = ray.get_runtime_context().get_node_id()
    alive = present_nodes()
    if all(node["NodeID"] != here for node in alive):
        raise InputError("Ray was told that the node of this command will be taken away: give the command on another")
    alive.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"], node["NodeID"]))
    left = ray._private.state.available_resources_per_node()
    gpus = _memory_of_gpus([node for node in alive if node["Resources"].get("GPU")])
    # Ray drops what is 0 from all that a node has.
    free_memory = _asked(available_memory, [node for node in alive if "memory" not in node["Resources"]])
    nodes = []
    for node in alive:
        free = left.get(node["NodeID"], node["Resources"])  # of a node that has just come nothing else is known
        whole = int(free.get("GPU", 0))
        nodes.append(
            Node(
                name=f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})",
                host_memory=free_memory.get(node["NodeID"], int(free.get("memory", 0))),
                gpu_memory=gpus.get(node["NodeID"], ())[:whole],
                cores=float(free.get("CPU", 0)),
                node_id=node["NodeID"],
                spot=node.get("Labels", {}).get(_MARKET) == "spot",
                counts_memory=node["NodeID"] not in free_memory,
                host=node["NodeManagerAddress"],
            )
        )
    return Cluster(nodes=tuple(nodes), has_own_store=True)


def _memory_of_gpus(nodes: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """That of each node that has some, by its id."""
    found = _asked(gpu_memory, nodes)
    for node in nodes:
        name, told, there = node["NodeManagerAddress"], int(node["Resources"]["GPU"]), len(found[node["NodeID"]])
        if there < told:
            raise InputError(
                f"node {name}: Ray was told of {told} GPU(s), and {there} are there; start it again with "
                f"--num-gpus {there}"
            )
    return found


def _asked(question: Callable[[], T], nodes: list[dict[str, Any]]) -> dict[str, T]:
    """What a function says on each node, by its id."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not nodes:
        return {}
    probe = ray.remote(num_cpus=0)(question)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[node["NodeID"]] = probe.options(scheduling_strategy=there).remote()
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_SECONDS)
    for node in nodes:
        if asked[node["NodeID"]] not in done:
            raise InputError(
                f"node {node['NodeManagerAddress']}: does not say in {_PROBE_SECONDS:g} s what it has; look there"
            )
    return {name: ray.get(one) for name, one in asked.items()}
