"""NuSLERP: along the great circle between two specialists, by weights that need not add up to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from mergebench_ray.methods import MethodParameters, ScalingCoefficient, TensorPlace, per_specialist, register
from mergebench_ray.methods.weighted import Around, GeometricMethod, Space, Vector, arc, weighted_sum

_NOTHING = 1e-6
_SHORTEST = 1e-7


class NuslerpParameters(MethodParameters):
    """Hyper-parameters of NuSLERP."""

    at_least = 2
    at_most = 2
    per_specialist = frozenset({"weight"})

    weight: ScalingCoefficient = Field(default=1.0, description="How much each of the two counts.")
    around: Around = Field(default="base", description="Centre of the circle: the base, or zero.")


@register
class Nuslerp(GeometricMethod):
    """θ₀ + the point on the great circle from τ₁ to τ₂, w₂ / (w₁ + w₂) of the way; or that from θ₁ to θ₂.

    Half the way where the weights add up to 0; a straight line between (nearly) parallel vectors.
    """

    name = "nuslerp"
    summary = "along the great circle between two specialists"
    source = "mergekit 0.1"
    Parameters = NuslerpParameters

    def weights(
        self, parameters: NuslerpParameters, space: Space, place: TensorPlace, specialists: Sequence[str]
    ) -> Vector:
        """Weights of both ends."""
        first, second = per_specialist(parameters.weight, place, specialists)
        share = second / (first + second) if abs(first + second) >= _NOTHING else 0.5
        ends = space.points(parameters.around)
        cosine = space.dot(*ends) / math.prod(max(space.length(end), _SHORTEST) for end in ends)
        point = weighted_sum(arc(share, math.acos(min(max(cosine, -1.0), 1.0))), ends)
        return space.placed(point, parameters.around)
