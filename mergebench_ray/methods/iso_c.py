"""Iso-C: the sum of the task vectors, with all singular values of a matrix replaced by their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergebench_ray.methods import MethodParameters, register, sum_of
from mergebench_ray.methods.parameters import OverLayers
from mergebench_ray.methods.spectral import SpectralMethod, SpectralTransform

if TYPE_CHECKING:
    from torch import Tensor


class IsoCParameters(MethodParameters):
    """Hyper-parameters of Iso-C."""

    over_layers = frozenset({"scaling_coef"})

    scaling_coef: OverLayers = Field(default=1.0, description="λ: what the isotropic sum is multiplied with.")


class IsoCTransform(SpectralTransform):
    """U Vᵀ of Σ τₖ = U S Vᵀ, times the mean of S."""

    method = "iso_c"
    key = "iso_c"
    is_shared = True

    def matrices(self, vectors: list[Tensor]) -> list[Tensor]:
        """One for all; in float64, since the smallest singular values count as much as the largest."""
        from mergebench_ray.kernels.spectral import isotropic

        return [isotropic(sum_of([vector.double() for vector in vectors]))]


@register
class IsoC(SpectralMethod):
    """θ₀ + λ s̄ U Vᵀ in matrices, with Σ τₖ = U S Vᵀ and s̄ the mean of S; θ₀ + λ mean τ elsewhere."""

    name = "iso_c"
    summary = "sum of task vectors with all singular values made equal"
    source = "Isotropic merging, arXiv 2502.04959"
    Parameters = IsoCParameters
    shared_companion = True

    def transform(self, parameters: IsoCParameters) -> IsoCTransform:
        """The same whatever λ."""
        return IsoCTransform()
