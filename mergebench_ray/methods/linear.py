"""Linear: the weighted average of the specialists, and of the base where it is given a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray.errors import InputError
from mergebench_ray.methods import MethodParameters, ScalingCoefficient, TensorPlace, per_specialist, register
from mergebench_ray.methods.parameters import OfTensors
from mergebench_ray.methods.weighted import WeightedSum

if TYPE_CHECKING:
    from mergebench_ray.kernels import Scalars

_NOTHING = 1e-6


class LinearParameters(MethodParameters):
    """Hyper-parameters of the weighted average."""

    per_specialist = frozenset({"weight"})
    over_layers = frozenset({"base_weight"})

    weight: ScalingCoefficient = Field(default=1.0, description="wₖ: how much each specialist counts.")
    base_weight: OfTensors = Field(default=0.0, description="w₀: how much the base counts.")
    normalize: bool = Field(default=True, description="Divide by the sum of all weights.")


@register
class Linear(WeightedSum):
    """(w₀ θ₀ + Σ wₖ θₖ) / (w₀ + Σ wₖ), or without that division."""

    name = "linear"
    summary = "weighted average of the specialists"
    source = "Model Soups, arXiv 2203.05482"
    Parameters = LinearParameters

    def scalars(
        self, parameters: LinearParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """The weights, of θ₀ and of each τₖ.

        Raises:
            InputError: weights that add up to 0 and shall be divided by their sum.
        """
        weights = per_specialist(parameters.weight, place, specialists)
        total = per_specialist(parameters.base_weight, place, [""])[0] + sum(weights)
        if not parameters.normalize:
            return {"base_weight": [total], "weight": weights}
        if abs(total) < _NOTHING:
            raise InputError(
                f"linear: weight: the weights of {place.name} add up to {total:g}, by which they would be divided; "
                "give others, or normalize: false"
            )
        return {"base_weight": [1.0], "weight": [weight / total for weight in weights]}
