"""SCE: select the entries in which specialists differ most, weigh specialists by their energy, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import Method, MethodParameters, Statistics, TensorPlace, register, sum_of
from mergebench_ray.methods.parameters import OfTensors, per_specialist

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Magnitudes, Scalars

_SMALLEST_WEIGHT = 1e-6
_NONE = 3e38


class SceParameters(MethodParameters):
    """Hyper-parameters of SCE."""

    over_layers = frozenset({"scaling_coef"})

    select_topk: float = Field(default=1.0, gt=0, le=1, description="Share of the entries that differ, selected.")
    alike_below: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Sum of mean squares of a tensor's task vectors below which all count alike; in mergekit 1e-6.",
    )
    scaling_coef: OfTensors = Field(default=1.0, description="λ: what the merge is multiplied with.")


class Selected(NamedTuple):
    """A tensor's smallest variance that is selected, and the weight of each specialist."""

    least: float
    weights: list[float]


@register
class Sce(Method):
    """θ₀ + λ Σ wₖ τₖ / Σ wₖ over the selected entries whose sign is that of Σ τₖ, in each tensor.

    Selected are the ⌊m · select_topk⌋ largest variances over the specialists of the m that are not 0, and what rounds
    to the same bf16 number as the smallest of these. wₖ is the mean of the squares of τₖ that are selected; where
    these add up to less than alike_below, or to 0, it is 1 for all.
    """

    name = "sce"
    summary = "entries that differ most, weighted by the energy of each task vector, without minority signs"
    source = "FuseChat, arXiv 2408.07990"
    Parameters = SceParameters
    statistics = frozenset({"magnitudes"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Select, elect, and average in float32."""
        vectors, weight = block.task_vectors, scalars["weight"]
        total = sum_of(vectors)
        up = [block.keep_where(vector > 0, weight[k] * vector) for k, vector in enumerate(vectors)]
        down = [block.keep_where(vector < 0, weight[k] * vector) for k, vector in enumerate(vectors)]
        risen = sum_of([(vector > 0).float() * weight[k] for k, vector in enumerate(vectors)])
        fallen = sum_of([(vector < 0).float() * weight[k] for k, vector in enumerate(vectors)])
        rise = block.keep_where(total >= 0, sum_of(up) / risen.clamp(min=_SMALLEST_WEIGHT))
        fall = block.keep_where(total < 0, sum_of(down) / fallen.clamp(min=_SMALLEST_WEIGHT))
        merged = scalars["lambda"] * (rise + fall)
        if options["select"]:
            merged = block.keep_where(variance(block) >= scalars["least"], merged)
        return block.base + merged

    def options(self, parameters: SceParameters) -> dict[str, Any]:
        """Without a selection, no variances."""
        return {"select": parameters.select_topk < 1}

    def prepare(self, parameters: SceParameters, statistics: Statistics) -> Mapping[str, Selected]:
        """Smallest variance and weights of each tensor."""
        whole = statistics.magnitudes()
        if parameters.select_topk == 1:
            return {name: Selected(0.0, _weights(one, parameters.alike_below)) for name, one in whole.items()}
        count = len(statistics.specialists)
        variances = statistics.values(kernels.BlockFunction(values_of_variance), {name: [{}] for name in whole})
        least = {name: _least(one, parameters.select_topk) for name, (one,) in variances.items()}
        places = range(count)
        scalars = {
            name: [{"least": [smallest], "is": [float(k == one) for k in places]} for one in places]
            for name, smallest in least.items()
        }
        selected = statistics.values(kernels.BlockFunction(selected_entries), scalars)
        return {name: Selected(least[name], _weights(one, parameters.alike_below)) for name, one in selected.items()}

    def scalars(
        self,
        parameters: SceParameters,
        prepared: Mapping[str, Selected],
        place: TensorPlace,
        specialists: Sequence[str],
    ) -> Scalars:
        """The tensor's smallest variance, weights, and λ."""
        least, weights = prepared[place.name]
        selection = {"least": [least]} if parameters.select_topk < 1 else {}
        return {**selection, "weight": weights, "lambda": per_specialist(parameters.scaling_coef, place, [""])}


def variance(block: Block) -> Tensor:
    """Of the task vectors, entry by entry."""
    vectors = block.task_vectors
    mean = sum_of(vectors) / len(vectors)
    return sum_of([(vector - mean) * (vector - mean) for vector in vectors]) / len(vectors)


def values_of_variance(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """The variance itself."""
    return variance(block)


def selected_entries(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """Those of the task vector that `is` says, where the variance is large enough; 0 elsewhere."""
    own = sum_of([scalars["is"][k] * vector for k, vector in enumerate(block.task_vectors)])
    return block.keep_where(variance(block) >= scalars["least"], own)


def _least(variances: Magnitudes, share: float) -> float:
    """The smallest float32 that rounds to the smallest bf16 variance that is selected."""
    entries = variances.num_entries
    kept = math.floor(variances.count_above(0.0) * share)
    return kernels.rounds_to(variances.kth_smallest(entries - kept + 1)) if kept else _NONE


def _weights(magnitudes: Sequence[Magnitudes], alike_below: float) -> list[float]:
    """Mean squares, divided by their sum."""
    squares = [one.mean_square() for one in magnitudes]
    total = sum(squares)
    if total < alike_below or total == 0:
        return [1 / len(squares)] * len(squares)
    return [square / total for square in squares]
