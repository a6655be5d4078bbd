"""Localize-and-Stitch: a mask per specialist, by magnitude or trained; entries averaged where masks overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    Method,
    MethodParameters,
    Statistics,
    TensorPlace,
    register,
    sum_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class LocalizeAndStitchParameters(MethodParameters):
    """Hyper-parameters of Localize-and-Stitch; those from `sigmoid_bias` on only count for trained masks."""

    sparsity: float = Field(default=0.1, gt=0, le=1, description="Share of each task vector that is stitched in.")
    overlap: Literal["paper", "mergebench"] = Field(
        default="paper",
        description="Weight of an entry that several specialists own: one over their number (paper), or as the "
        "public MergeBench code computes it, which only looks at the last other specialist.",
    )

    trained: bool = Field(default=False, description="Train the masks on calibration data.")
    sigmoid_bias: float = Field(default=3.0, gt=0, le=1000, description="Mask logits start at ± this.")
    learning_rate: float = Field(default=1e8, gt=0, le=1e15, description="Learning rate of the mask logits.")
    epochs: int = Field(default=1, ge=1, le=100_000, description="Steps on the mean gradient of all samples.")
    l1_strength: float = Field(default=0.0, ge=0, le=1e9, description="Pull towards empty masks.")
    calibration_samples: int = Field(default=1000, ge=1, le=10_000_000, description="Samples of each specialist.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """Leave out what does not count, so that equal merges have equal digests."""
        values = super().completed(specialists, layers)
        return values if self.trained else {name: values[name] for name in _DATA_FREE}


_DATA_FREE = ("sparsity", "overlap")


@register
class LocalizeAndStitch(Method):
    """θ₀ + Σ γ'ₖ τₖ with γ'ₖ = γₖ / Σⱼ γⱼ; γₖ marks the largest ⌊n · sparsity⌋ magnitudes of the whole τₖ.

    Magnitudes equal to the smallest one kept are kept as well. With `trained`, γₖ starts from there and is trained on
    specialist k's calibration data.
    """

    name = "localize_and_stitch"
    summary = "largest (or trained) entries of each task vector, averaged where they overlap"
    source = "Localize-and-Stitch, arXiv 2408.13656"
    Parameters = LocalizeAndStitchParameters
    statistics = frozenset({"magnitude_histogram", "mask"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Mask, weigh and add in float32."""
        vectors = block.task_vectors
        if options["trained"]:
            masks = block.companions
        else:
            threshold = scalars["threshold"]
            masks = [(vector.abs() >= threshold[k]).float() for k, vector in enumerate(vectors)]
        if options["overlap"] == "paper":
            stitched = sum_of([mask * vector for mask, vector in zip(masks, vectors, strict=True)])
            return block.base + stitched / sum_of(masks).clamp(min=1.0)
        owners = [mask + _last_other(masks, k) * mask for k, mask in enumerate(masks)]
        shares = [mask / owner.clamp(min=1.0) for mask, owner in zip(masks, owners, strict=True)]
        return block.base + sum_of([share * vector for share, vector in zip(shares, vectors, strict=True)])

    def options(self, parameters: LocalizeAndStitchParameters) -> dict[str, Any]:
        """The rule for overlaps and where masks come from are other formulas."""
        return {"overlap": parameters.overlap, "trained": parameters.trained}

    def calibration_samples(self, parameters: LocalizeAndStitchParameters) -> int | None:
        """As the user says, for trained masks."""
        return parameters.calibration_samples if parameters.trained else None

    def prepare(self, parameters: LocalizeAndStitchParameters, statistics: Statistics) -> _Masks:
        """The smallest magnitude that each specialist's mask keeps or starts with; trained masks."""
        kept = max(1, math.floor(statistics.num_entries * parameters.sparsity))
        rank = statistics.num_entries - kept + 1
        thresholds = [
            kernels.kth_smallest_magnitude(histogram, rank) for histogram in statistics.magnitude_histograms()
        ]
        if not parameters.trained:
            return _Masks(thresholds, ())
        names = ("sparsity", "sigmoid_bias", "learning_rate", "epochs", "l1_strength")
        options = tuple((name, float(getattr(parameters, name))) for name in names)
        request = CalibrationRequest("mask", parameters.calibration_samples, options, tuple(thresholds))
        return _Masks(thresholds, statistics.calibrated(request))

    def companions(self, parameters: Any, prepared: _Masks) -> tuple[Calibrated, ...]:
        """The trained masks."""
        return prepared.trained

    def companion_dtype(self, parameters: LocalizeAndStitchParameters) -> torch.dtype | None:
        """Trained masks are kept as booleans."""
        import torch

        return torch.bool if parameters.trained else None

    def scalars(
        self, parameters: LocalizeAndStitchParameters, prepared: _Masks, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """The thresholds, which trained masks do not need."""
        return {} if parameters.trained else {"threshold": prepared.thresholds}


class _Masks(NamedTuple):
    """How entries are localised: magnitudes from which on they are kept, or masks."""

    thresholds: list[float]
    trained: tuple[Calibrated, ...]


def _last_other(masks: list[Tensor], k: int) -> Tensor:
    """Mask of the last specialist other than k; nothing where k is the only one."""
    others = [mask for j, mask in enumerate(masks) if j != k]
    return others[-1] if others else masks[k].new_zeros(masks[k].shape)
