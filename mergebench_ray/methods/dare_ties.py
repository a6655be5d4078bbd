"""DARE-TIES: drop entries of the task vectors at random, rescale the rest, merge them as TIES without a second trim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import TensorPlace, per_specialist, register
from mergebench_ray.methods.parameters import Density
from mergebench_ray.methods.sparse import SparseParameters, SparseTaskVectors, combined

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class DareTiesParameters(SparseParameters):
    """Hyper-parameters of DARE-TIES."""

    density: Density = Field(default=0.5, description="Probability that an entry is kept.")
    rescale: bool = Field(default=True, description="Multiply what is kept by 1 / density.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the random masks.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """As of any method; where nothing is dropped, the seed makes no difference, and is 0."""
        values = super().completed(specialists, layers)
        return values | {"seed": 0} if all(one == 1 for one in values["density"].values()) else values


@register
class DareTies(SparseTaskVectors):
    """θ₀ + λ Σ wₖ / density · (entries of τₖ that were not dropped and have the elected sign).

    The masks are those of DARE.
    """

    name = "dare_ties"
    summary = "random drop and rescale, then elect a sign and add what agrees"
    source = "mergekit 0.1; DARE, arXiv 2311.03099"
    Parameters = DareTiesParameters
    uses_position = True
    elects = True

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Draw, drop, elect and add in float32."""
        scrambled = kernels.scramble(block.position, scalars["tensor_keys"])
        kept = []
        for k, vector in enumerate(block.task_vectors):
            numbers = kernels.random_numbers(scrambled, scalars["specialist_keys"][k])
            kept.append(block.keep_where(numbers >= scalars["drop_below"][k], scalars["weight"][k] * vector))
        return combined(block, kept, scalars, **options)

    def scalars(
        self, parameters: DareTiesParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """Weights, and the keys of this tensor and of each specialist in it."""
        densities = per_specialist(parameters.density, place, specialists)
        # What is kept with probability 0 still is where the largest number is drawn.
        factors = [(1 / density if parameters.rescale else 1.0) if density else 0.0 for density in densities]
        tensor = (parameters.seed, place.name, place.part)
        return {
            **self.weights(parameters, place, specialists, factors),
            "drop_below": [kernels.threshold_of(1 - density) for density in densities],
            "tensor_keys": kernels.tensor_keys(*tensor),
            "specialist_keys": [kernels.specialist_key(*tensor, name) for name in specialists],
        }
