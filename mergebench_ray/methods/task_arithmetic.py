"""Task arithmetic: scaled task vectors, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

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


_NOTHING = 1e-8


class TaskArithmeticParameters(MethodParameters):
    """Hyper-parameters of task arithmetic."""

    per_specialist = frozenset({"scaling_coef", "weight"})
    switched_off: ClassVar[Mapping[str, Any]] = {"weight": 1.0, "normalize": False}

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")
    weight: ScalingCoefficient = Field(default=1.0, description="wₖ: what each λₖ is multiplied with.")
    normalize: bool = Field(default=False, description="Divide by the sum of the weights, in each tensor.")


@register
class TaskArithmetic(Method):
    """θ₀ + Σ λₖ wₖ τₖ, or of that sum the part of Σ wₖ."""

    name = "task_arithmetic"
    summary = "sum of scaled task vectors"
    source = "Task Arithmetic, arXiv 2212.04089"
    Parameters = TaskArithmeticParameters

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Scale and add in float32."""
        coefficient = scalars["coefficient"]
        return block.base + sum_of([coefficient[k] * vector for k, vector in enumerate(block.task_vectors)])

    def scalars(
        self, parameters: TaskArithmeticParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """λ of each specialist in this tensor."""
        coefficients = per_specialist(parameters.scaling_coef, place, specialists)
        weights = per_specialist(parameters.weight, place, specialists)
        total = sum(weights) if parameters.normalize else 1.0
        share = 1 / total if abs(total) >= _NOTHING else 1.0
        return {"coefficient": [one * weight * share for one, weight in zip(coefficients, weights, strict=True)]}
