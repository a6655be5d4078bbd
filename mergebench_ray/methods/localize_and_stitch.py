"""Localize-and-Stitch without data: each specialist's largest entries, averaged where they overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mergebench_ray.kernels import Block, Scalars, kth_smallest_magnitude
from mergebench_ray.methods.base import Method, MethodParameters, Statistics, TensorPlace, sum_of
from mergebench_ray.methods.registry import register


class LocalizeAndStitchParameters(MethodParameters):
    """Hyper-parameters of data-free Localize-and-Stitch."""

    sparsity: float = Field(default=0.1, gt=0, le=1, description="Share of each task vector that is stitched in.")
    overlap: Literal["paper", "mergebench"] = Field(
        default="paper",
        description="Weight of an entry that several specialists own: one over their number (paper), or as the "
        "public MergeBench code computes it, which only looks at the last other specialist.",
    )


@register
class LocalizeAndStitch(Method):
    """θ₀ + Σ γ'ₖ τₖ with γ'ₖ = γₖ / Σⱼ γⱼ; γₖ marks the largest ⌊n · sparsity⌋ magnitudes of the whole τₖ.

    Magnitudes equal to the smallest one kept are kept as well.
    """

    name = "localize_and_stitch"
    summary = "largest entries of each task vector, averaged where they overlap"
    source = "Localize-and-Stitch, arXiv 2408.13656"
    Parameters = LocalizeAndStitchParameters
    statistics = frozenset({"magnitude_histogram"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Mask, weigh and add in float32."""
        threshold = scalars["threshold"]
        vectors = block.task_vectors
        masks = [(vector.abs() >= threshold[k]).float() for k, vector in enumerate(vectors)]
        if options["overlap"] == "paper":
            stitched = sum_of([mask * vector for mask, vector in zip(masks, vectors, strict=True)])
            return block.base + stitched / sum_of(masks).clamp(min=1.0)
        owners = [mask + _last_other(masks, k) * mask for k, mask in enumerate(masks)]
        shares = [mask / owner.clamp(min=1.0) for mask, owner in zip(masks, owners, strict=True)]
        return block.base + sum_of([share * vector for share, vector in zip(shares, vectors, strict=True)])

    def options(self, parameters: LocalizeAndStitchParameters) -> dict[str, Any]:
        """The rule for overlaps is another formula."""
        return {"overlap": parameters.overlap}

    def prepare(self, parameters: LocalizeAndStitchParameters, statistics: Statistics) -> list[float]:
        """The smallest magnitude that each specialist's mask keeps."""
        kept = max(1, math.floor(statistics.num_entries * parameters.sparsity))
        rank = statistics.num_entries - kept + 1
        return [kth_smallest_magnitude(histogram, rank) for histogram in statistics.magnitude_histograms()]

    def scalars(
        self, parameters: Any, prepared: list[float], place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """The thresholds."""
        return {"threshold": prepared}


def _last_other(masks: list[Tensor], k: int) -> Tensor:
    """Mask of the last specialist other than k; nothing where k is the only one."""
    others = [mask for j, mask in enumerate(masks) if j != k]
    return others[-1] if others else torch.zeros_like(masks[k])
