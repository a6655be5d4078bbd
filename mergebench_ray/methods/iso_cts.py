"""Iso-CTS: common directions of all task vectors, own directions of each, all with one singular value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from mergebench_ray.methods import register
from mergebench_ray.methods.iso_c import IsoCParameters
from mergebench_ray.methods.spectral import SpectralMethod, SpectralTransform

if TYPE_CHECKING:
    from torch import Tensor


class IsoCtsParameters(IsoCParameters):
    """Hyper-parameters of Iso-CTS."""

    common_space_fraction: float = Field(
        default=0.8, ge=0, le=1, description="Share of the directions that are those of the sum of all task vectors."
    )


@dataclass(frozen=True)
class IsoCtsTransform(SpectralTransform):
    """Of one fraction, for all specialists together."""

    common_space_fraction: float
    method = "iso_cts"
    is_shared = True

    @property
    def key(self) -> str:  # type: ignore[override]
        """With the fraction."""
        return f"{self.method}, common {self.common_space_fraction!r}"

    def matrices(self, vectors: list[Tensor]) -> list[Tensor]:
        """One for all."""
        from mergebench_ray.kernels.spectral import isotropic_in_common_and_own

        return [isotropic_in_common_and_own(vectors, self.common_space_fraction)]


@register
class IsoCts(SpectralMethod):
    """θ₀ + λ s̄ U Vᵀ in matrices, θ₀ + λ mean τ elsewhere.

    U and V are the polar factors of: of each τₖ, without what lies in the common ones, its first
    m = min(round((r - ⌊r fraction⌋) / K), ⌊r / K⌋) directions, r the smaller side; and of the common ones, the first
    r - K m directions of Σ τₖ. s̄ is the mean of all their singular values.
    """

    name = "iso_cts"
    summary = "common directions of all task vectors and own ones of each, made equally long"
    source = "Isotropic merging, arXiv 2502.04959"
    Parameters = IsoCtsParameters
    shared_companion = True

    def transform(self, parameters: IsoCtsParameters) -> IsoCtsTransform:
        """For each fraction another."""
        return IsoCtsTransform(parameters.common_space_fraction)
