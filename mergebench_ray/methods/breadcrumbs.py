"""Breadcrumbs: drop the largest and the smallest entries of each task vector, tensor by tensor, and add the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mergebench_ray.methods import Statistics, TensorPlace, per_specialist, register
from mergebench_ray.methods.sparse import (
    SparseParameters,
    SparseTaskVectors,
    combined,
    rescaling,
    whole_share,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Magnitudes, Scalars

_NONE = (0.0, -1.0)  # magnitudes that nothing lies between


Dropped = Annotated[float, Field(ge=0, le=1)]


class BreadcrumbsParameters(SparseParameters):
    """Hyper-parameters of Breadcrumbs."""

    per_specialist = frozenset({"weight", "density", "gamma"})
    one_if_alike = frozenset({"gamma"})

    gamma: Dropped | dict[str, Dropped] = Field(
        default=0.01, description="Share of the largest entries, which are dropped."
    )
    rescale: bool = Field(default=False, description="Give what is kept of a tensor the 1-norm of all of it.")


@register
class Breadcrumbs(SparseTaskVectors):
    """θ₀ + λ Σ wₖ · (entries of τₖ that are kept), in each tensor.

    Of its n entries the ⌊n · gamma⌋ largest are dropped, then the smallest, so that ⌊n · density⌋ stay; fewer of the
    largest where that would be too many. Entries as large as the smallest or the largest that is kept are kept as well.
    """

    name = "breadcrumbs"
    summary = "task vectors of which each tensor's largest and smallest entries are dropped, added up"
    source = "Model Breadcrumbs, arXiv 2312.06795"
    Parameters = BreadcrumbsParameters
    statistics = frozenset({"magnitudes"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Drop from both ends, and add or elect in float32."""
        weight, least, most = scalars["weight"], scalars["least"], scalars["most"]
        kept = []
        for k, vector in enumerate(block.task_vectors):
            magnitude = vector.abs()
            large = block.keep_where(magnitude >= least[k], weight[k] * vector)
            kept.append(block.keep_where(magnitude <= most[k], large))
        return combined(block, kept, scalars, **options)

    def prepare(self, parameters: Any, statistics: Statistics) -> Mapping[str, Sequence[Magnitudes]]:
        """Magnitudes, which do not depend on density and gamma."""
        return statistics.magnitudes()

    def scalars(
        self,
        parameters: BreadcrumbsParameters,
        prepared: Mapping[str, Sequence[Magnitudes]],
        place: TensorPlace,
        specialists: Sequence[str],
    ) -> Scalars:
        """Weights, and the smallest and the largest magnitude that is kept of each specialist."""
        densities = per_specialist(parameters.density, place, specialists)
        largest = per_specialist(parameters.gamma, place, specialists)
        magnitudes = prepared[place.name]
        kept = [
            _ends(one, *_ranks(one.num_entries, density, gamma))
            for one, density, gamma in zip(magnitudes, densities, largest, strict=True)
        ]
        factors = [
            rescaling(one, *ends) if parameters.rescale else 1.0 for one, ends in zip(magnitudes, kept, strict=True)
        ]
        return {
            **self.weights(parameters, place, specialists, factors),
            "least": [least for least, _ in kept],
            "most": [most for _, most in kept],
        }


def _ranks(entries: int, density: float, gamma: float) -> tuple[int, int]:
    """Ranks of the smallest and the largest magnitude that is kept, 1-based; the last below the first for none."""
    if density == 1:
        return 1, entries
    kept = whole_share(density, entries)
    below = max(0, entries - kept - whole_share(gamma, entries))
    return below + 1, below + kept


def _ends(magnitudes: Magnitudes, first: int, last: int) -> tuple[float, float]:
    return (magnitudes.kth_smallest(first), magnitudes.kth_smallest(last)) if first <= last else _NONE
