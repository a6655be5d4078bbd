"""Model soup: the plain average of the specialists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergebench_ray.methods import Method, TensorPlace, register, sum_of

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


@register
class ModelSoup(Method):
    """θ₀ + (1/K) Σ τₖ."""

    name = "model_soup"
    summary = "plain average of the specialists"
    source = "Model Soups, arXiv 2203.05482"

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Average in float32."""
        return block.base + sum_of(block.task_vectors) * scalars["share"]

    def scalars(self, parameters: Any, prepared: Any, place: TensorPlace, specialists: Sequence[str]) -> Scalars:
        """1/K."""
        return {"share": [1.0 / len(specialists)]}
