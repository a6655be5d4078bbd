"""TSV-Merge: the first singular vectors of each task vector, made orthogonal to those of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergebench_ray.methods import MethodParameters, ScalingCoefficient, register
from mergebench_ray.methods.spectral import SpectralMethod, SpectralTransform

if TYPE_CHECKING:
    from torch import Tensor


class TsvMParameters(MethodParameters):
    """Hyper-parameters of TSV-Merge."""

    per_specialist = frozenset({"scaling_coef"})

    scaling_coef: ScalingCoefficient = Field(default=1.0, description="λ: what each specialist's part is scaled by.")


class TsvTransform(SpectralTransform):
    """Columns of a specialist: U S Vᵀ of its first ⌊r/K⌋ triplets, or one, U and V parts of all polar factors."""

    method = "tsv_m"
    key = "tsv_m, one at least"
    is_shared = False

    def matrices(self, vectors: list[Tensor]) -> list[Tensor]:
        """One for each."""
        from mergebench_ray.kernels.spectral import tsv_merge

        return tsv_merge(vectors)


@register
class TsvM(SpectralMethod):
    """θ₀ + Σ λₖ Uₖ Sₖ Vₖᵀ in matrices, θ₀ + Σ λₖ τₖ / K elsewhere.

    Sₖ are the first ⌊r/K⌋ singular values of τₖ, one at least, r the smaller side; all Uₖ side by side are the polar
    factor of the left singular vectors side by side, and so are the Vₖ.
    """

    name = "tsv_m"
    summary = "first singular vectors of each task vector, made orthogonal to the others'"
    source = "Task Singular Vectors, arXiv 2412.00081"
    Parameters = TsvMParameters

    def transform(self, parameters: TsvMParameters) -> TsvTransform:
        """The same whatever λ."""
        return TsvTransform()
