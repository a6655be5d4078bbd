"""What a sweep takes and whether it fits, before any weight is loaded."""

from __future__ import annotations

from mergebench_ray.placement.need import Need
from mergebench_ray.placement.plan import Machine, Plan, engines_per_candidate, make_plan

__all__ = ["Machine", "Need", "Plan", "engines_per_candidate", "make_plan"]
