"""Whether a placement holds, added up with nothing of the code that made it."""

from __future__ import annotations

from collections.abc import Sequence

from mergebench_ray.placement import Cluster, Placed


def holds(placed: Sequence[Placed], cluster: Cluster) -> bool:
    """Whether no node, core or device has more on it than it has."""
    for number, node in enumerate(cluster.nodes):
        here = [one for one in placed if one.node == number]
        if sum(one.part.host_memory for one in here) > node.host_memory:
            return False
        if node.cores is not None and sum(one.part.cores for one in here) > node.cores:
            return False
        for device, memory in enumerate(node.gpu_memory):
            taken, share = 0, 0.0
            for part in (one.part for one in here if device in one.devices):
                mine = int(part.gpu_fraction * memory) or max(part.gpu_memory, int(part.gpu_rest * memory))
                if mine < part.gpu_memory:
                    return False
                taken += mine
                share += max(mine / memory, part.gpu_share / 10_000)
            if taken > memory or share > 1 + 1e-9:
                return False
    return all(
        len(set(one.devices)) == one.part.gpus
        and all(device < len(cluster.nodes[one.node].gpu_memory) for device in one.devices)
        and one.part.node in (None, one.node)
        for one in placed
    )
