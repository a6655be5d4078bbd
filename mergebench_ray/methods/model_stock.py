"""Model Stock: from the base towards the plain average, the further the more the task vectors agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from mergebench_ray.methods import MethodParameters, TensorPlace, register
from mergebench_ray.methods.weighted import GeometricMethod, Space, Vector

_SHORTEST = 1e-6
"""Product of two lengths, and 1 + (K - 1) cos θ, below which there is no direction to speak of."""


class ModelStockParameters(MethodParameters):
    """Model Stock has no hyper-parameters."""

    at_least = 2


@register
class ModelStock(GeometricMethod):
    """θ₀ + t · mean τ in each tensor, t = K cos θ / (1 + (K - 1) cos θ), cos θ the mean cosine of all pairs of τₖ.

    Where 1 + (K - 1) cos θ is 0, as of two opposite task vectors, t is 0.
    """

    name = "model_stock"
    summary = "from the base towards the average, as far as the task vectors of each tensor agree"
    source = "Model Stock, arXiv 2403.19522"
    Parameters = ModelStockParameters

    def weights(
        self, parameters: ModelStockParameters, space: Space, place: TensorPlace, specialists: Sequence[str]
    ) -> Vector:
        """T / K for each."""
        count = len(specialists)
        pairs = list(combinations(space.task_vectors, 2))
        cosine = sum(_cosine(space, one, other) for one, other in pairs) / len(pairs)
        denominator = 1 + (count - 1) * cosine
        share = count * cosine / denominator if denominator > _SHORTEST else 0.0
        return [1.0, *[share / count] * count]


def _cosine(space: Space, one: Vector, other: Vector) -> float:
    lengths = max(space.length(one) * space.length(other), _SHORTEST)
    return min(max(space.dot(one, other) / lengths, -1.0), 1.0)
