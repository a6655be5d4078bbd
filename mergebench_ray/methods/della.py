"""DELLA: drop entries of the task vectors at random, small ones of a row more often, and merge the rest as TIES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import (
    Calibrated,
    MethodParameters,
    Statistics,
    TensorPlace,
    Transform,
    per_specialist,
    register,
)
from mergebench_ray.methods.parameters import OfTensors
from mergebench_ray.methods.sparse import SparseParameters, SparseTaskVectors, combined

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars

_STEPS = 255
_MIDDLE = 128

_RANGE = 2.0**32 + 2.0**10
"""Of random numbers, and a little more, so that in float32 probability 0 keeps none of them, and 1 all."""

_SMALLEST = 1e-20
"""What is divided by where a probability is 0."""


Spread = Annotated[float, Field(ge=0, lt=0.5)]


class DellaLinearParameters(SparseParameters):
    """Hyper-parameters of DELLA without an election."""

    per_specialist = frozenset({"weight", "density", "epsilon"})
    one_if_alike = frozenset({"epsilon"})

    epsilon: Spread | dict[str, Spread] = Field(
        default=0.1,
        description="By how much more or less than density the ends of a row are kept; at most density and 1 - density "
        "count.",
    )
    rescale: bool = Field(default=True, description="Multiply what is kept by 1 / its probability.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the random masks.")

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """As of any method; where nothing is dropped, epsilon and seed make no difference, and are 0."""
        values = super().completed(specialists, layers)
        return values | {"epsilon": 0.0, "seed": 0} if all(one == 1 for one in values["density"].values()) else values


class DellaParameters(DellaLinearParameters):
    """Hyper-parameters of DELLA."""

    normalize: bool = Field(default=True, description="Divide by the weights of what was added, entry by entry.")
    scaling_coef: OfTensors = Field(default=1.0, description="λ: what the merge is multiplied with.")


class RowRanks(Transform):
    """Rank of each entry's magnitude in its row, from 0 for the smallest to 255 for the largest, in whole numbers."""

    key = "ranks in rows"
    is_shared = False

    @property
    def dtype(self) -> torch.dtype:
        """That of task vectors, which holds numbers to 255 exactly, and which passes read fastest."""
        import torch

        return torch.bfloat16

    def of(self, vectors: list[Tensor]) -> list[Tensor]:
        """Entries of equal magnitude are ranked as they follow each other; a vector is one row.

        The entry of a row of one, such as a tensor without a dimension, is in the middle.
        """
        if vectors[0].dim() == 0 or vectors[0].shape[-1] == 1:
            return [vector.new_full(vector.shape, _MIDDLE) for vector in vectors]
        ranked = []
        for vector in vectors:
            ranks = vector.abs().sort(dim=-1, stable=True).indices.argsort(dim=-1).double()
            ranked.append((ranks * _STEPS / (vector.shape[-1] - 1)).round())
        return ranked


@register
class Della(SparseTaskVectors):
    """θ₀ + λ Σ wₖ / pₖ · (entries of τₖ that were not dropped and have the elected sign) / Σ wₖ over those.

    An entry is kept with probability p = density - ε + 2 ε · rank, its rank in the row from 0 for the smallest
    magnitude to 1 for the largest, to one in 255; ε is epsilon, but at most density and 1 - density. Whether it is
    dropped depends on seed, specialist, tensor, position.
    """

    name = "della"
    summary = "random drop, small entries of a row more often, then elect a sign and average what agrees"
    source = "DELLA, arXiv 2406.11617"
    Parameters: ClassVar[type[MethodParameters]] = DellaParameters
    statistics = frozenset({"row_ranks"})
    uses_position = True
    elects = True

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Draw, drop, rescale, and elect or add in float32."""
        least, step, weight = scalars["least"], scalars["step"], scalars["weight"]
        scrambled = kernels.scramble(block.position, scalars["tensor_keys"])
        kept = []
        for k, vector in enumerate(block.task_vectors):
            probability = least[k] + step[k] * block.companions[k]
            below = (0.5 - probability) * _RANGE
            numbers = kernels.random_numbers(scrambled, scalars["specialist_keys"][k])
            weighted = weight[k] * vector
            if options["rescale"]:
                weighted = weighted / probability.clamp(min=_SMALLEST)
            kept.append(block.keep_where(numbers >= below, weighted))
        return combined(block, kept, scalars, options["elect"], options["normalize"])

    def options(self, parameters: Any) -> dict[str, Any]:
        """Rescaling is another formula, too."""
        return {**super().options(parameters), "rescale": parameters.rescale}

    def prepare(self, parameters: Any, statistics: Statistics) -> tuple[Calibrated, ...]:
        """The ranks, which do not depend on any hyper-parameter."""
        return statistics.transformed(RowRanks())

    def companions(self, parameters: Any, prepared: tuple[Calibrated, ...]) -> tuple[Calibrated, ...]:
        """The ranks."""
        return prepared

    def companion_dtype(self, parameters: Any) -> torch.dtype:
        """That of the ranks."""
        return RowRanks().dtype

    def scalars(
        self, parameters: DellaLinearParameters, prepared: Any, place: TensorPlace, specialists: Sequence[str]
    ) -> Scalars:
        """Weights, probabilities of the ends of a row, and the keys of this tensor and of each specialist in it."""
        densities = per_specialist(parameters.density, place, specialists)
        wanted = per_specialist(parameters.epsilon, place, specialists)
        spread = [min(one, density, 1 - density) for one, density in zip(wanted, densities, strict=True)]
        tensor = (parameters.seed, place.name, place.part)
        return {
            **self.weights(parameters, place, specialists, [1.0] * len(specialists)),
            "least": [density - epsilon for density, epsilon in zip(densities, spread, strict=True)],
            "step": [2 * epsilon / _STEPS for epsilon in spread],
            "tensor_keys": kernels.tensor_keys(*tensor),
            "specialist_keys": [kernels.specialist_key(*tensor, name) for name in specialists],
        }
