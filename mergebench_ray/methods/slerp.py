"""SLERP: along the great circle from the base to one specialist, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from mergebench_ray.methods import MethodParameters, ScalingCoefficient, TensorPlace, per_specialist, register
from mergebench_ray.methods.weighted import GeometricMethod, Space, Vector, arc, weighted_sum

_NEARLY_PARALLEL = 0.9995
"""Cosine beyond which the way is a straight line."""
_SHORTEST = 1e-8


class SlerpParameters(MethodParameters):
    """Hyper-parameters of SLERP."""

    at_most = 1
    per_specialist = frozenset({"t"})

    t: ScalingCoefficient = Field(default=0.5, description="Share of the way from the base to the specialist.")


@register
class Slerp(GeometricMethod):
    """sin((1 - t) α) / sin α · θ₀ + sin(t α) / sin α · θ₁, α the angle between both; a straight line if it is small."""

    name = "slerp"
    summary = "along the great circle from the base to one specialist"
    source = "as mergekit 0.1 does it; Shoemake, SIGGRAPH 1985"
    Parameters = SlerpParameters

    def weights(
        self, parameters: SlerpParameters, space: Space, place: TensorPlace, specialists: Sequence[str]
    ) -> Vector:
        """Weights of both ends, of which the specialist is base and task vector."""
        (share,), (end,) = per_specialist(parameters.t, place, specialists), space.specialists
        lengths = [max(space.length(one), _SHORTEST) for one in (space.base, end)]
        cosine = space.dot(space.base, end) / math.prod(lengths)
        straight = abs(cosine) > _NEARLY_PARALLEL
        return weighted_sum((1 - share, share) if straight else arc(share, math.acos(cosine)), [space.base, end])
