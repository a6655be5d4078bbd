"""LiNeS: task arithmetic whose coefficient goes in a straight line over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray.methods import Method, MethodParameters, ScalingCoefficient, TensorPlace, per_specialist, register
from mergebench_ray.methods.task_arithmetic import TaskArithmetic

if TYPE_CHECKING:
    from mergebench_ray.kernels import Scalars


class LinesParameters(MethodParameters):
    """Hyper-parameters of LiNeS."""

    per_specialist = frozenset({"alpha", "beta"})

    alpha: ScalingCoefficient = Field(default=0.2, description="λ of the first layer.")
    beta: ScalingCoefficient = Field(default=0.4, description="What λ grows by up to the last layer.")


@register
class Lines(Method):
    """θ₀ + Σ λₖ(l) τₖ with λₖ(l) = αₖ + βₖ l / (L - 1) in layer l of L; outside the layers as in the last."""

    name = "lines"
    summary = "task arithmetic, less in the first layers than in the last"
    source = "LiNeS, arXiv 2410.17146"
    Parameters = LinesParameters
    merge_block = staticmethod(TaskArithmetic.merge_block)

    def scalars(
        self, parameters: LinesParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """λ of each specialist in this tensor's layer."""
        steps = place.num_layers - 1
        share = 1.0 if place.layer is None or not steps else place.layer / steps
        firsts = per_specialist(parameters.alpha, place, specialists)
        growths = per_specialist(parameters.beta, place, specialists)
        return {"coefficient": [first + share * growth for first, growth in zip(firsts, growths, strict=True)]}
