"""Methods that drop entries of the task vectors, and add up what is left or merge it as TIES does: what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mergebench_ray.methods.method import Method, sum_of
from mergebench_ray.methods.parameters import (
    Density,
    MethodParameters,
    OfTensors,
    ScalingCoefficient,
    TensorPlace,
    per_specialist,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Magnitudes

_NOTHING = 1e-8


class SparseParameters(MethodParameters):
    """Hyper-parameters of what comes after entries were dropped."""

    per_specialist = frozenset({"weight", "density"})
    over_layers = frozenset({"scaling_coef"})

    weight: ScalingCoefficient = Field(default=1.0, description="wₖ: what each task vector is multiplied with.")
    density: Density = Field(default=0.9, description="Share of each task vector that is kept.")
    normalize: bool = Field(default=False, description="Divide by the weights of what was added, entry by entry.")
    scaling_coef: OfTensors = Field(default=0.4, description="λ: what their sum is multiplied with.")


class SparseTaskVectors(Method):
    """θ₀ + λ Σ wₖ · (entries of τₖ that are kept), all of them or those that have the elected sign.

    The elected sign is that of the sum of the weighted entries, plus where they cancel out. With `normalize`, divided
    by the weights of what was added up, or by all of them where no sign is elected.
    """

    elects: ClassVar[bool] = False

    def options(self, parameters: Any) -> dict[str, Any]:
        """Whether a sign is elected, and entries are divided by weights of their own: other formulas."""
        return {"elect": self.elects, "normalize": self.elects and parameters.normalize}

    def weights(
        self, parameters: Any, place: TensorPlace, specialists: Sequence[str], factors: Sequence[float]
    ) -> dict[str, list[float]]:
        """The scalars that `combined` needs.

        Args:
            parameters: an instance of `SparseParameters`, completed.
            place: the tensor.
            specialists: sorted names.
            factors: by which what is kept of each specialist is rescaled.
        """
        weights = per_specialist(parameters.weight, place, specialists)
        (scale,) = per_specialist(parameters.scaling_coef, place, [""])
        rescaled = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        if self.elects:
            return {"weight": rescaled, "counts": weights, "lambda": [scale]}
        total = sum(weights) if parameters.normalize else 1.0
        scale = scale / (total if abs(total) >= _NOTHING else 1.0)
        return {"weight": [scale * weight for weight in rescaled]}


def combined(block: Block, kept: list[Tensor], scalars: Mapping[str, Tensor], elect: bool, normalize: bool) -> Tensor:
    """The base and what is merged of the kept, weighted entries of each task vector."""
    if not elect:
        return block.base + sum_of(kept)
    total = sum_of(kept)
    up = _of_one_sign(block, [vector > 0 for vector in kept], kept, scalars["counts"], normalize)
    down = _of_one_sign(block, [vector < 0 for vector in kept], kept, scalars["counts"], normalize)
    # Both are merged before the sign is known: a chain of operations half as long.
    merged = block.keep_where(total >= 0, up) + block.keep_where(total < 0, down)
    return block.base + scalars["lambda"] * merged


def _of_one_sign(block: Block, are: list[Tensor], kept: list[Tensor], counts: Tensor, normalize: bool) -> Tensor:
    total = sum_of([block.keep_where(is_so, vector) for is_so, vector in zip(are, kept, strict=True)])
    if not normalize:
        return total
    weights = sum_of([is_so.float() * counts[k] for k, is_so in enumerate(are)])
    return total / (weights + (weights == 0).float())


def rescaling(magnitudes: Magnitudes, least: float, most: float) -> float:
    """By which all entries of magnitudes from `least` to `most` are multiplied to have the 1-norm of the tensor."""
    whole, kept = magnitudes.sum_between(0.0, math.inf), magnitudes.sum_between(least, most)
    return whole / kept if min(whole, kept) >= _SHORTEST else 1.0


def whole_share(share: float, entries: int) -> int:
    """How many entries a share of them is, cut to a whole number."""
    return math.floor(share * entries)


_SHORTEST = 1e-7
