"""RAM: entries that one specialist alone moves stay as they are, those that several move are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray.methods import Method, MethodParameters, TensorPlace, register, sum_of

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class RamParameters(MethodParameters):
    """Hyper-parameters of RAM."""

    epsilon: float = Field(default=1e-5, ge=0, le=1, description="Magnitude beyond which an entry was moved.")


@register
class Ram(Method):
    """θ₀ + the mean of the τₖ that move an entry, |τₖ| > ε; with `alone`, times that where only one does."""

    name = "ram"
    summary = "entries that one specialist moves in full, those that several move averaged"
    source = "Reinforced Agent Merging, arXiv 2601.13572"
    Parameters = RamParameters

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Count who moves an entry, and average in float32."""
        epsilon, alone, vectors = scalars["epsilon"], scalars["alone"], block.task_vectors
        moves = [vector.abs() > epsilon for vector in vectors]
        count = sum_of([moved.float() for moved in moves])
        moved = [block.keep_where(moves[k], vector) for k, vector in enumerate(vectors)]
        several = sum_of(moved) / count.clamp(min=1.0)
        own = sum_of([alone[k] * vector for k, vector in enumerate(moved)])
        return block.base + block.keep_where(count > 1, several) + block.keep_where(count <= 1, own)

    def scalars(self, parameters: Any, prepared: Any, place: TensorPlace, specialists: Sequence[str]) -> Scalars:
        """What is beyond ε has moved, and counts in full where it has moved alone."""
        return {"epsilon": [parameters.epsilon], "alone": [1.0] * len(specialists)}
