"""Consensus task arithmetic: keep the entries that matter to several specialists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

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

MaskFactor = Annotated[float, Field(ge=0, le=1e6)]


class ConsensusParameters(MethodParameters):
    """Hyper-parameters of consensus task arithmetic."""

    per_specialist = frozenset({"scaling_coef", "mu"})

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")
    mu: MaskFactor | dict[str, MaskFactor] = Field(default=0.2, description="μ, from 0: larger masks keep less.")
    k: int = Field(default=2, ge=1, description="Masks that must hold an entry for it to be kept.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """As for every method; also at most K masks can be asked for."""
        if self.k > len(specialists):
            raise ValueError(f"k = {self.k}: must be at most the number of specialists, {len(specialists)}")
        return super().completed(specialists, layers)


@register
class Consensus(Method):
    """θ₀ + Σ λₖ τₖ, kept where at least `k` of the masks |τₖ| > μₖ |τ - τₖ| hold, with τ = Σ τₖ."""

    name = "consensus"
    summary = "task arithmetic on the entries that several specialists agree to need"
    source = "Consensus TA (TALL masks), arXiv 2405.07813"
    Parameters = ConsensusParameters

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Count masks, scale and add in float32."""
        coefficient, mu, vectors = scalars["coefficient"], scalars["mu"], block.task_vectors
        total = sum_of(vectors)
        masks = sum_of(
            [(v.abs() > mu[k] * (total - v).abs()).float() for k, v in enumerate(vectors)],
        )
        merged = sum_of([coefficient[k] * vector for k, vector in enumerate(vectors)])
        return block.base + block.keep_where(masks >= scalars["needed"], merged)

    def scalars(
        self, parameters: ConsensusParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """λ, μ and the number of masks needed."""
        return {
            "coefficient": per_specialist(parameters.scaling_coef, place, specialists),
            "mu": per_specialist(parameters.mu, place, specialists),
            "needed": [float(parameters.k)],
        }
