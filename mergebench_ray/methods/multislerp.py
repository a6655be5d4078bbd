"""Multi-SLERP: a weighted average of directions on a sphere, through the plane that touches it at their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from mergebench_ray.errors import InputError
from mergebench_ray.methods import MethodParameters, ScalingCoefficient, TensorPlace, per_specialist, register
from mergebench_ray.methods.weighted import Around, GeometricMethod, Space, Vector, scaled, weighted_sum

_SHORTEST = 1e-8


class MultislerpParameters(MethodParameters):
    """Hyper-parameters of Multi-SLERP."""

    at_least = 2
    per_specialist = frozenset({"weight"})

    weight: ScalingCoefficient = Field(default=1.0, description="How much each specialist counts.")
    normalize: bool = Field(default=True, description="Divide the weights by their sum.")
    around: Around = Field(default="base", description="Centre of the sphere: the base, or zero.")


@register
class Multislerp(GeometricMethod):
    """θ₀ + Σ wₖ |τₖ| times a direction: the mean m of all τₖ / |τₖ|, moved by the mean of their parts across m.

    With m of length 1 and d = Σ wₖ (uₖ - (uₖ · m) m), uₖ = τₖ / |τₖ|, the direction is cos |d| m + sin |d| d / |d|.
    Where the weighted directions of two cancel out, it is their weighted sum.
    """

    name = "multislerp"
    summary = "weighted average on a sphere around the base"
    source = "mergekit 0.1 (goddard.blog, Multi-SLERP)"
    Parameters = MultislerpParameters

    def weights(
        self, parameters: MultislerpParameters, space: Space, place: TensorPlace, specialists: Sequence[str]
    ) -> Vector:
        """Weights of base and task vectors.

        Raises:
            InputError: weights that add up to 0 and shall be divided by their sum, or directions that cancel out.
        """
        weights = per_specialist(parameters.weight, place, specialists)
        if parameters.normalize:
            total = sum(weights)
            if abs(total) < _SHORTEST:
                raise InputError(
                    f"multislerp: weight: the weights of {place.name} add up to {total:g}, by which they would be "
                    "divided; give others, or normalize: false"
                )
            weights = [weight / total for weight in weights]
        vectors = space.points(parameters.around)
        lengths = [space.length(vector) for vector in vectors]
        directions = [scaled(1 / (size + _SHORTEST), vector) for size, vector in zip(lengths, vectors, strict=True)]
        mean = weighted_sum(weights, directions)
        size = space.length(mean)
        if size < _SHORTEST and any(lengths):
            if len(vectors) > 2:
                raise InputError(
                    f"multislerp: weight: the weighted directions of {place.name} cancel out, so there is no mean; "
                    "give other weights"
                )
            return space.placed(weighted_sum(weights, vectors), parameters.around)
        mean = scaled(1 / max(size, _SHORTEST), mean)
        across = [weighted_sum([1.0, -space.dot(one, mean)], [one, mean]) for one in directions]
        move = weighted_sum(weights, across)
        angle = space.length(move) + _SHORTEST
        direction = weighted_sum([math.cos(angle), math.sin(angle) / angle], [mean, move])
        radius = sum(weight * size for weight, size in zip(weights, lengths, strict=True))
        return space.placed(scaled(radius, direction), parameters.around)
