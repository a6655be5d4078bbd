"""Raylets of Ray's own test cluster, without what no test asks of them: each process takes a second to start."""

from __future__ import annotations

from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

LEAN_HEAD: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""For the node that begins a cluster: nobody sees its logs from elsewhere, and it does not grow."""


def drain(node: str) -> None:
    """Tell Ray that a node will be taken away, as `ray drain-node` does, which takes seconds to start."""
    gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    is_accepted, why_not = gcs.drain_node(node, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "a test", 0)
    assert is_accepted, why_not
