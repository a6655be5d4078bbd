"""Fisher merging: an average of the specialists, each parameter weighed by how much its specialist depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    Method,
    MethodParameters,
    Statistics,
    TensorPlace,
    per_specialist,
    register,
    sum_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars

_FLOOR = 1e-10
"""Added to every Fisher diagonal, so that a parameter that no specialist depends on is averaged."""

Weight = Annotated[float, Field(ge=1e-6, le=1e6)]


class FisherParameters(MethodParameters):
    """Hyper-parameters of Fisher merging."""

    per_specialist = frozenset({"weight"})

    weight: Weight | dict[str, Weight] = Field(default=1.0, description="cₖ: how much each specialist counts.")
    calibration_samples: int = Field(default=1000, ge=1, le=10_000_000, description="Samples of each specialist.")


@register
class Fisher(Method):
    """Σ cₖ (Fₖ + 1e-10) θₖ / Σ cₖ (Fₖ + 1e-10), with Fₖ the diagonal of the Fisher information of specialist k."""

    name = "fisher"
    summary = "average weighed by each specialist's Fisher information"
    source = "Fisher merging, arXiv 2111.09832"
    Parameters = FisherParameters
    statistics = frozenset({"fisher"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The weighted average of the task vectors, in float32."""
        weight = scalars["weight"]
        weights = [weight[k] * (fisher + _FLOOR) for k, fisher in enumerate(block.companions)]
        weighted = sum_of([share * vector for share, vector in zip(weights, block.task_vectors, strict=True)])
        return block.base + weighted / sum_of(weights)

    def scalars(
        self, parameters: FisherParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """The weights cₖ."""
        return {"weight": per_specialist(parameters.weight, place, specialists)}

    def calibration_samples(self, parameters: FisherParameters) -> int:
        """As the user says."""
        return parameters.calibration_samples

    def prepare(self, parameters: FisherParameters, statistics: Statistics) -> tuple[Calibrated, ...]:
        """The Fisher diagonals."""
        return statistics.calibrated(CalibrationRequest("fisher", parameters.calibration_samples))

    def companions(self, parameters: Any, prepared: tuple[Calibrated, ...]) -> tuple[Calibrated, ...]:
        """The Fisher diagonals, entry by entry."""
        return prepared

    def companion_dtype(self, parameters: Any) -> torch.dtype:
        """As they are accumulated."""
        import torch

        return torch.float32
