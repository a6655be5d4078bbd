"""Task arithmetic: scaled task vectors, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


class TaskArithmeticParameters(MethodParameters):
    """Hyper-parameters of task arithmetic."""

    per_specialist = frozenset({"scaling_coef"})

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")


@register
class TaskArithmetic(Method):
    """θ₀ + Σ λₖ τₖ."""

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
        """λ of each specialist in this tensor's layer group."""
        return {"coefficient": per_specialist(parameters.scaling_coef, place, specialists)}
