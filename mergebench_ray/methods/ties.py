"""TIES: trim small entries, elect a sign, merge the entries that agree with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import (
    Method,
    MethodParameters,
    ScalingCoefficient,
    Statistics,
    TensorPlace,
    per_specialist,
    register,
    sum_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class TiesParameters(MethodParameters):
    """Hyper-parameters of TIES."""

    per_specialist = frozenset({"scaling_coef"})

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")
    density: float = Field(default=0.2, gt=0, le=1, description="Share of each task vector that is kept.")
    merge_func: Literal["sum", "mean", "max"] = Field(
        default="sum", description="How the entries that agree with the elected sign are merged."
    )


SMALLEST = 2.0**-133
"""The smallest positive bf16 number; sums of bf16 numbers in float32 are multiples of it."""


class Prepared(NamedTuple):
    """What depends on the density alone.

    Attributes:
        thresholds: smallest magnitude kept, by specialist.
        majority: elected sign where the trimmed entries cancel out: -1, 0 or 1.
    """

    thresholds: list[float]
    majority: int


@register
class Ties(Method):
    """θ₀ + Σ λₖ · (entries of the trimmed τₖ whose sign is the elected one), summed, averaged, or the largest alone.

    The elected sign is that of the sum of the trimmed task vectors; where they cancel out, that of the sum of all
    elected signs. Trimming keeps magnitudes from the m-th smallest on, m = n - floor(n * density), over the whole
    task vector.
    """

    name = "ties"
    summary = "trim by magnitude, elect a sign, merge the entries that agree"
    source = "TIES-Merging, arXiv 2306.01708"
    Parameters = TiesParameters
    statistics = frozenset({"magnitude_histogram"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Trim, elect and merge in float32."""
        risen, fallen = trim(block, scalars["threshold"])
        total = sum_of(risen) + sum_of(fallen)
        merge = {"sum": _merge_sum, "mean": _merge_mean, "max": _merge_max}[options["merge_func"]]
        up, down = merge(risen, scalars["coefficient"]), merge(fallen, scalars["coefficient"])
        # Both are merged before the sign is known: a chain of operations half as long, which is what limits a CPU.
        rise = block.keep_where(total > scalars["up_above"], up)
        fall = block.keep_where(total < scalars["down_below"], down)
        return block.base + rise + fall

    def options(self, parameters: TiesParameters) -> dict[str, Any]:
        """The merge function is another formula."""
        return {"merge_func": parameters.merge_func}

    def prepare(self, parameters: TiesParameters, statistics: Statistics) -> Prepared:
        """Thresholds from the exact histograms, and the sign for entries that cancel out."""
        rank = statistics.num_entries - math.floor(statistics.num_entries * parameters.density)
        smallest_kept = [
            kernels.kth_smallest_magnitude(histogram, rank) for histogram in statistics.magnitude_histograms()
        ]
        # Whether zeros are kept makes no difference to a sum; without them, an entry has risen, fallen or is dropped.
        thresholds = [max(magnitude, SMALLEST) for magnitude in smallest_kept]
        balance = statistics.total(kernels.BlockFunction(elected_sign), {"threshold": thresholds})
        return Prepared(thresholds, (balance > 0) - (balance < 0))

    def scalars(
        self, parameters: TiesParameters, prepared: Prepared, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """Thresholds, λ, and the sums from which on a sign is elected: where they cancel out it is the majority's."""
        return {
            "coefficient": per_specialist(parameters.scaling_coef, place, specialists),
            "threshold": prepared.thresholds,
            "up_above": [-SMALLEST / 2 if prepared.majority > 0 else 0.0],
            "down_below": [SMALLEST / 2 if prepared.majority < 0 else 0.0],
        }


def trim(block: Block, threshold: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Task vectors without the magnitudes below their thresholds: the positive entries, and the negative ones."""
    vectors = list(enumerate(block.task_vectors))
    risen = [block.keep_where(vector >= threshold[k], vector) for k, vector in vectors]
    fallen = [block.keep_where(vector <= -threshold[k], vector) for k, vector in vectors]
    return risen, fallen


def elected_sign(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """Sign of the sum of the trimmed task vectors: -1, 0 or 1."""
    risen, fallen = trim(block, scalars["threshold"])
    return (sum_of(risen) + sum_of(fallen)).sign()


def _merge_sum(agreeing: list[Tensor], coefficient: Tensor) -> Tensor:
    return sum_of([coefficient[k] * vector for k, vector in enumerate(agreeing)])


def _merge_mean(agreeing: list[Tensor], coefficient: Tensor) -> Tensor:
    count = sum_of([(vector != 0).float() for vector in agreeing])
    return _merge_sum(agreeing, coefficient) / count.clamp(min=1.0)


def _merge_max(agreeing: list[Tensor], coefficient: Tensor) -> Tensor:
    """The largest magnitude, with λ of its specialist (of the first one where several are as large)."""
    largest = agreeing[0].abs()
    merged = coefficient[0] * agreeing[0]
    for k, vector in enumerate(agreeing[1:], start=1):
        merged = (coefficient[k] * vector).where(vector.abs() > largest, merged)
        largest = largest.maximum(vector.abs())
    return merged
