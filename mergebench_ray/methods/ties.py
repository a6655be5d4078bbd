"""TIES: trim small entries, elect a sign, merge the entries that agree with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

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
from mergebench_ray.methods.parameters import Density
from mergebench_ray.methods.sparse import rescaling

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Magnitudes, Scalars


class TiesParameters(MethodParameters):
    """Hyper-parameters of TIES."""

    per_specialist = frozenset({"scaling_coef", "weight", "density"})
    one_if_alike = frozenset({"density"})
    switched_off: ClassVar[Mapping[str, Any]] = {"trim": "global", "weight": 1.0, "rescale": False}

    scaling_coef: ScalingCoefficient = Field(default=0.4, description="λ: what each task vector is multiplied with.")
    density: Density = Field(default=0.2, description="Share of each task vector that is kept.")
    merge_func: Literal["sum", "mean", "max"] = Field(
        default="sum",
        description="How the entries that agree with the elected sign are merged; the mean is over their weights.",
    )
    trim: Literal["global", "tensor"] = Field(
        default="global", description="Whether density is of a whole task vector, or of each of its tensors."
    )
    weight: ScalingCoefficient = Field(
        default=1.0, description="wₖ: what each trimmed task vector is multiplied with before a sign is elected."
    )
    rescale: bool = Field(default=False, description="Give what is kept of a tensor the 1-norm of all of it.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """As of any method; merges without the switches have the digests that they always had.

        Raises:
            ValueError: something that is of each tensor, where whole task vectors are trimmed.
        """
        values = super().completed(specialists, layers)
        densities = values["density"].values() if isinstance(values["density"], dict) else [values["density"]]
        if self.trim == "global" and (self.rescale or any(isinstance(one, list) for one in densities)):
            what = "rescale" if self.rescale else "density"
            raise ValueError(f"{what} is of each tensor by itself here, which needs trim: tensor")
        return values

    @property
    def is_weighted(self) -> bool:
        """Whether what is kept of any task vector is multiplied with something."""
        weights = self.weight.values() if isinstance(self.weight, Mapping) else [self.weight]
        return self.rescale or any(weight != 1 for weight in weights)


SMALLEST = 2.0**-133
"""The smallest positive bf16 number; sums of bf16 numbers in float32 are multiples of it."""


class Prepared(NamedTuple):
    """What depends on the density alone.

    Attributes:
        thresholds: smallest magnitude kept, by specialist.
        majority: elected sign where the trimmed entries cancel out: -1, 0 or 1.
        of_tensors: magnitudes of each tensor, by its name, where each has thresholds of its own.
    """

    thresholds: list[float]
    majority: int
    of_tensors: Mapping[str, Sequence[Magnitudes]] | None = None


@register
class Ties(Method):
    """θ₀ + Σ λₖ · (entries of the trimmed τₖ whose sign is the elected one), summed, averaged, or the largest alone.

    The elected sign is that of the sum of the trimmed task vectors; where they cancel out, that of the sum of all
    elected signs. Trimming keeps magnitudes from the m-th smallest on, m = n - floor(n * density), over the whole
    task vector. With `trim: tensor`, m = n - max(1, floor(n * density)) + 1 in each tensor, and with that or with
    weights, an entry whose trimmed task vectors cancel out has risen: so it is in mergekit.
    """

    name = "ties"
    summary = "trim by magnitude, elect a sign, merge the entries that agree"
    source = "TIES-Merging, arXiv 2306.01708"
    Parameters = TiesParameters
    statistics = frozenset({"magnitude_histogram", "magnitudes"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Trim, elect and merge in float32."""
        weight, counts = (scalars[name] if options["weighted"] else None for name in ("weight", "counts"))
        risen, fallen = trim(block, scalars["threshold"], weight)
        total = sum_of(risen) + sum_of(fallen)
        merge = {"sum": _merge_sum, "mean": _merge_mean, "max": _merge_max}[options["merge_func"]]
        up, down = (merge(entries, scalars["coefficient"], counts) for entries in (risen, fallen))
        # Both are merged before the sign is known: a chain of operations half as long, which is what limits a CPU.
        rise = block.keep_where(total > scalars["up_above"], up)
        fall = block.keep_where(total < scalars["down_below"], down)
        return block.base + rise + fall

    def options(self, parameters: TiesParameters) -> dict[str, Any]:
        """The merge function is another formula, and so are weights."""
        return {"merge_func": parameters.merge_func, "weighted": parameters.is_weighted}

    def prepare(self, parameters: TiesParameters, statistics: Statistics) -> Prepared:
        """Thresholds from the exact histograms, and the sign for entries that cancel out."""
        if parameters.trim == "tensor":
            return Prepared([], 1, statistics.magnitudes())
        entries, names = statistics.num_entries, statistics.specialists
        densities = per_specialist(parameters.density, TensorPlace("", None, 1), names)
        smallest_kept = [
            kernels.kth_smallest_magnitude(histogram, entries - math.floor(entries * density))
            for histogram, density in zip(statistics.magnitude_histograms(), densities, strict=True)
        ]
        # Whether zeros are kept makes no difference to a sum; without them, an entry has risen, fallen or is dropped.
        thresholds = [max(magnitude, SMALLEST) for magnitude in smallest_kept]
        if parameters.is_weighted:
            return Prepared(thresholds, 1)
        balance = statistics.total(kernels.BlockFunction(elected_sign), {"threshold": thresholds})
        return Prepared(thresholds, (balance > 0) - (balance < 0))

    def scalars(
        self, parameters: TiesParameters, prepared: Prepared, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """Thresholds, λ, and the sums from which on a sign is elected: where they cancel out it is the majority's."""
        thresholds, factors = prepared.thresholds, [1.0] * len(specialists)
        if prepared.of_tensors is not None:
            densities, magnitudes = (
                per_specialist(parameters.density, place, specialists),
                prepared.of_tensors[place.name],
            )
            thresholds = [_threshold(one, density) for one, density in zip(magnitudes, densities, strict=True)]
            if parameters.rescale:
                ends = zip(magnitudes, thresholds, strict=True)
                factors = [rescaling(one, least, math.inf) for one, least in ends]
        weights = per_specialist(parameters.weight, place, specialists)
        scaled = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        return {
            **({"weight": scaled, "counts": weights} if parameters.is_weighted else {}),
            "coefficient": per_specialist(parameters.scaling_coef, place, specialists),
            "threshold": thresholds,
            "up_above": [-SMALLEST / 2 if prepared.majority > 0 else 0.0],
            "down_below": [SMALLEST / 2 if prepared.majority < 0 else 0.0],
        }


def trim(block: Block, threshold: Tensor, weight: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Task vectors without the magnitudes below their thresholds: the positive entries, and the negative ones.

    Args:
        block: has the task vectors.
        threshold: of each.
        weight: what each is multiplied with; None for 1.
    """
    vectors = list(enumerate(block.task_vectors))
    if weight is not None:
        kept = [block.keep_where(vector.abs() >= threshold[k], weight[k] * vector) for k, vector in vectors]
        risen = [block.keep_where(vector > 0, vector) for vector in kept]
        return risen, [block.keep_where(vector < 0, vector) for vector in kept]
    risen = [block.keep_where(vector >= threshold[k], vector) for k, vector in vectors]
    fallen = [block.keep_where(vector <= -threshold[k], vector) for k, vector in vectors]
    return risen, fallen


def elected_sign(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """Sign of the sum of the trimmed task vectors: -1, 0 or 1."""
    risen, fallen = trim(block, scalars["threshold"])
    return (sum_of(risen) + sum_of(fallen)).sign()


def _threshold(magnitudes: Magnitudes, density: float) -> float:
    """The smallest magnitude of a tensor that is kept; of density 0 none is."""
    entries = magnitudes.num_entries
    rank = entries - max(1, math.floor(entries * density)) + 1
    return max(magnitudes.kth_smallest(rank), SMALLEST) if density else math.inf


def _merge_sum(agreeing: list[Tensor], coefficient: Tensor, counts: Tensor | None) -> Tensor:
    return sum_of([coefficient[k] * vector for k, vector in enumerate(agreeing)])


def _merge_mean(agreeing: list[Tensor], coefficient: Tensor, counts: Tensor | None) -> Tensor:
    total = _merge_sum(agreeing, coefficient, counts)
    are = [(vector != 0).float() for vector in agreeing]
    if counts is None:
        return total / sum_of(are).clamp(min=1.0)
    weights = sum_of([counts[k] * is_so for k, is_so in enumerate(are)])
    return total / (weights + (weights == 0).float())


def _merge_max(agreeing: list[Tensor], coefficient: Tensor, counts: Tensor | None) -> Tensor:
    """The largest magnitude, with λ of its specialist (of the first one where several are as large)."""
    largest = agreeing[0].abs()
    merged = coefficient[0] * agreeing[0]
    for k, vector in enumerate(agreeing[1:], start=1):
        merged = (coefficient[k] * vector).where(vector.abs() > largest, merged)
        largest = largest.maximum(vector.abs())
    return merged
