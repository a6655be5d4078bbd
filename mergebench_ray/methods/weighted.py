"""Methods whose merge of each tensor is a weighted sum of base and specialists: what they share.

Their weights may come from lengths and angles of the models. Those all follow from the inner products of base and task
vectors of the tensor, so that no method of this kind looks at weights before it merges.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mergebench_ray.methods.method import Method, sum_of
from mergebench_ray.methods.parameters import TensorPlace
from mergebench_ray.methods.statistics import InnerProducts, Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars

Vector = Sequence[float]
"""A weighted sum by its weights: of the base, and of each task vector."""

Around = Literal["base", "zero"]
"""What lengths and angles are measured from: the base, so of task vectors, or zero, so of the specialists' weights."""


class WeightedSum(Method):
    """w₀ θ₀ + Σ wₖ τₖ, with weights for each tensor: scalars "base_weight" and "weight"."""

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Scale and add in float32."""
        weight = scalars["weight"]
        scaled = [weight[k] * vector for k, vector in enumerate(block.task_vectors)]
        return block.base * scalars["base_weight"] + sum_of(scaled)


class GeometricMethod(WeightedSum):
    """A weighted sum by weights that follow from lengths and angles of the models in each tensor."""

    statistics = frozenset({"inner_products"})

    def prepare(self, parameters: Any, statistics: Statistics) -> Mapping[str, InnerProducts]:
        """Inner products of base and task vectors, by tensor."""
        return statistics.inner_products()

    def scalars(
        self, parameters: Any, prepared: Mapping[str, InnerProducts], place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """The weights."""
        base, *others = self.weights(parameters, Space(prepared[place.name]), place, specialists)
        return {"base_weight": [base], "weight": others}

    @abstractmethod
    def weights(self, parameters: Any, space: Space, place: TensorPlace, specialists: Sequence[str]) -> Vector:
        """Weights of the base and of each task vector in a tensor.

        Args:
            parameters: an instance of `Parameters`, completed.
            space: lengths and angles of the tensor's weighted sums.
            place: the tensor.
            specialists: sorted names.
        """


class Space:
    """Lengths and angles of weighted sums of base and task vectors, of one tensor.

    Args:
        inner_products: of base and task vectors, [K + 1][K + 1].
    """

    def __init__(self, inner_products: InnerProducts) -> None:
        self._products = inner_products

    @property
    def base(self) -> Vector:
        """The base."""
        return self._unit(0)

    @property
    def task_vectors(self) -> list[Vector]:
        """τₖ of each specialist."""
        return [self._unit(k) for k in range(1, len(self._products))]

    @property
    def specialists(self) -> list[Vector]:
        """θₖ = θ₀ + τₖ of each specialist."""
        return [weighted_sum([1.0, 1.0], [self.base, vector]) for vector in self.task_vectors]

    def points(self, around: Around) -> list[Vector]:
        """The specialists as seen from there."""
        return self.task_vectors if around == "base" else self.specialists

    def placed(self, point: Vector, around: Around) -> Vector:
        """What is seen there from there: added to the base, or the point itself."""
        return weighted_sum([1.0, 1.0], [self.base, point]) if around == "base" else point

    def dot(self, one: Vector, other: Vector) -> float:
        """Inner product; added up from first to last, as the order is part of the bits."""
        rows = zip(one, self._products, strict=True)
        return sum(x * sum(y * entry for y, entry in zip(other, row, strict=True)) for x, row in rows)

    def length(self, one: Vector) -> float:
        """Euclidean norm."""
        return math.sqrt(max(self.dot(one, one), 0.0))

    def _unit(self, index: int) -> Vector:
        return [float(place == index) for place in range(len(self._products))]


def weighted_sum(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """Σ wᵢ vᵢ."""
    return [sum(w * entry for w, entry in zip(weights, entries, strict=True)) for entries in zip(*vectors, strict=True)]


def scaled(factor: float, vector: Vector) -> Vector:
    """A vector times a number."""
    return [factor * entry for entry in vector]


def arc(share: float, angle: float) -> tuple[float, float]:
    """Weights of two vectors of one length, an angle apart, for the point on the great circle between them.

    Args:
        share: of the way from the first to the second.
        angle: between them, in radians.

    Returns:
        weights that add up to 1 where the angle is too small to divide by its sine, or 180°.
    """
    if abs(math.sin(angle)) < _SMALLEST_SINE:
        return 1 - share, share
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


_SMALLEST_SINE = 1e-8
