"""What a sweep takes, whether it fits, and what sits where, before any weight is loaded."""

from __future__ import annotations

from mergebench_ray.placement.placement import Placement, find_placement, place_engines
from mergebench_ray.placement.plan import Plan, engines_per_candidate, make_plan
from mergebench_ray.placement.records import Cluster, Node, Part, Placed

__all__ = [
    "Cluster",
    "Node",
    "Part",
    "Placed",
    "Placement",
    "Plan",
    "engines_per_candidate",
    "find_placement",
    "make_plan",
    "place_engines",
]
