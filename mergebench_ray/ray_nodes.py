"""The nodes of the cluster at hand, and those of them that are to be taken away."""

from __future__ import annotations

import functools
import logging
from typing import Any

import ray

_log = logging.getLogger(__name__)


def present_nodes() -> list[dict[str, Any]]:
    """Nodes that are there to stay, as `ray.nodes()` describes them."""
    leaving = leaving_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def is_alive(node: str) -> bool:
    """Whether a node is there, by Ray's id of it."""
    return any(one["Alive"] for one in ray.nodes() if one["NodeID"] == node)


def leaving_nodes() -> frozenset[str]:
    """Ray's ids of nodes of which it was told that they will be taken away: nothing new starts there.

    Ray 2.60 says so to itself alone: in public, by `ray.nodes()` and the state API, such a node is as any other. This
    is the one place that asks as Ray's own libraries do; a Ray without such a call has no node that leaves with notice.
    """
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except AttributeError:
        _say_once()
        return frozenset()


@functools.cache
def _say_once() -> None:
    _log.warning(
        "Ray %s does not say which nodes are to be taken away: what is on one is lost with it, and repeated elsewhere",
        ray.__version__,
    )
