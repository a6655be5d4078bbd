"""DARE: drop entries of the task vectors at random, rescale the rest, then task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import (
    Method,
    MethodParameters,
    ScalingCoefficient,
    TensorPlace,
    per_specialist,
    register,
    sum_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class DareParameters(MethodParameters):
    """Hyper-parameters of DARE."""

    per_specialist = frozenset({"scaling_coef"})

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")
    p: float = Field(default=0.9, ge=0, lt=1, description="Probability that an entry is dropped.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the random masks.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """As of any method; where nothing is dropped, the seed makes no difference, and is 0."""
        values = super().completed(specialists, layers)
        return values | {"seed": 0} if self.p == 0 else values


@register
class Dare(Method):
    """θ₀ + Σ λₖ / (1 - p) · (entries of τₖ that were not dropped).

    Whether an entry is dropped depends on seed, specialist, tensor name and its position in the tensor, and on
    nothing else: the same recipe gives the same model on any number of shards.
    """

    name = "dare"
    summary = "random drop and rescale, then task arithmetic"
    source = "DARE, arXiv 2311.03099"
    Parameters = DareParameters
    uses_position = True

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Draw, drop, scale and add in float32."""
        coefficient, drop_below = scalars["coefficient"], scalars["drop_below"]
        scrambled = kernels.scramble(block.position, scalars["tensor_keys"])
        kept = []
        for k, vector in enumerate(block.task_vectors):
            numbers = kernels.random_numbers(scrambled, scalars["specialist_keys"][k])
            kept.append(block.keep_where(numbers >= drop_below, coefficient[k] * vector))
        return block.base + sum_of(kept)

    def scalars(
        self, parameters: DareParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """λ / (1 - p), and the keys of this tensor and of each specialist in it."""
        coefficients = per_specialist(parameters.scaling_coef, place, specialists)
        tensor = (parameters.seed, place.name, place.part)
        return {
            "coefficient": [coefficient / (1 - parameters.p) for coefficient in coefficients],
            "drop_below": [kernels.threshold_of(parameters.p)],
            "tensor_keys": kernels.tensor_keys(*tensor),
            "specialist_keys": [kernels.specialist_key(*tensor, name) for name in specialists],
        }
