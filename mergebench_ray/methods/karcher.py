"""Karcher mean: the direction that is nearest to those of all specialists on the sphere, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mergebench_ray.methods import MethodParameters, TensorPlace, per_specialist, register
from mergebench_ray.methods.weighted import Around, GeometricMethod, Space, Vector, scaled, weighted_sum

PositiveWeight = Annotated[float, Field(ge=1e-6, le=1e6)]


class KarcherParameters(MethodParameters):
    """Hyper-parameters of the Karcher mean."""

    per_specialist = frozenset({"weight"})

    weight: PositiveWeight | dict[str, PositiveWeight] = Field(
        default=1.0, description="How much each specialist counts."
    )
    steps: int = Field(default=10, ge=1, le=1000, description="Most steps towards the mean.")
    tolerance: float = Field(default=1e-5, gt=0, le=1, description="Length of a step, in radians, that is the last.")
    around: Around = Field(default="zero", description="Centre of the sphere: zero, or the base.")


@register
class Karcher(GeometricMethod):
    """Σ wₖ |θₖ| · u, u the Karcher mean of the directions θₖ / |θₖ|, or the same of task vectors around the base.

    It begins at their weighted mean, and goes on along Σ wₖ logᵤ(θₖ / |θₖ|), by its length, until that is short.
    """

    name = "karcher"
    summary = "Karcher mean of the specialists' directions, tensor by tensor"
    source = "mergekit 0.1; Karcher, Comm. Pure Appl. Math. 1977"
    Parameters = KarcherParameters

    def weights(
        self, parameters: KarcherParameters, space: Space, place: TensorPlace, specialists: Sequence[str]
    ) -> Vector:
        """Weights of base and task vectors."""
        given = per_specialist(parameters.weight, place, specialists)
        weights = [weight / sum(given) for weight in given]
        vectors = space.points(parameters.around)
        lengths = [space.length(vector) for vector in vectors]
        radius = sum(weight * size for weight, size in zip(weights, lengths, strict=True))
        seen = [k for k, size in enumerate(lengths) if size > parameters.tolerance]
        if not seen:
            return space.placed(scaled(0.0, vectors[0]), parameters.around)
        among = sum(weights[k] for k in seen)
        mean = _mean(
            space,
            [weights[k] / among for k in seen],
            [scaled(1 / lengths[k], vectors[k]) for k in seen],
            parameters,
        )
        return space.placed(scaled(radius, mean), parameters.around)


def _mean(
    space: Space, weights: Sequence[float], directions: Sequence[Vector], parameters: KarcherParameters
) -> Vector:
    """The mean of directions of length 1, with weights that add up to 1."""
    mean = weighted_sum(weights, directions)
    size = space.length(mean)
    mean = scaled(1 / size, mean) if size >= parameters.tolerance else directions[0]
    for _ in range(parameters.steps):
        step = scaled(0.0, mean)
        for weight, direction in zip(weights, directions, strict=True):
            cosine = min(max(space.dot(mean, direction), -1.0), 1.0)
            angle = math.acos(cosine)
            if angle >= parameters.tolerance and math.sin(angle) > 0:
                pull = weight * angle / math.sin(angle)
                step = weighted_sum([1.0, pull, -pull * cosine], [step, direction, mean])
        size = space.length(step)
        if size < parameters.tolerance:
            break
        mean = weighted_sum([math.cos(size), math.sin(size) / size], [mean, step])
        mean = scaled(1 / space.length(mean), mean)
    return mean
