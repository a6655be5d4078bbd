"""Methods that put other matrices in the place of task vectors, made of their singular vectors: what they share.

A search pays for singular value decompositions once. What they give is kept on disk tensor by tensor, laid out as the
model is, and read by shards and windows like a statistic; a candidate is then a sum as in task arithmetic, of those
instead of the task vectors, with coefficients for each layer. So any number of shards, and a merge without a bank, have
the same bits; LAPACK's own differ between kinds of processors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergebench_ray.errors import InputError
from mergebench_ray.methods.method import Method, sum_of
from mergebench_ray.methods.parameters import TensorPlace, per_specialist
from mergebench_ray.methods.statistics import Calibrated, Statistics, Transform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class SpectralMethod(Method):
    """θ₀ + Σ λₖ Δₖ, or θ₀ + λ Δ where one Δ stands for all specialists; λ is the parameter `scaling_coef`."""

    statistics = frozenset({"spectral"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Scale and add in float32."""
        coefficient = scalars["coefficient"]
        return block.base + sum_of([coefficient[k] * delta for k, delta in enumerate(block.companions)])

    @abstractmethod
    def transform(self, parameters: Any) -> SpectralTransform:
        """What is made of the task vectors."""

    def prepare(self, parameters: Any, statistics: Statistics) -> tuple[Calibrated, ...]:
        """Its files, made where they are not there."""
        return statistics.transformed(self.transform(parameters))

    def companions(self, parameters: Any, prepared: tuple[Calibrated, ...]) -> tuple[Calibrated, ...]:
        """Those files."""
        return prepared

    def companion_dtype(self, parameters: Any) -> torch.dtype:
        """As they are kept."""
        return self.transform(parameters).dtype

    def scalars(self, parameters: Any, prepared: Any, place: TensorPlace, specialists: Sequence[str]) -> Scalars:
        """λ in this tensor's layer group, of each specialist or of all."""
        names = specialists[:1] if self.shared_companion else specialists
        return {"coefficient": per_specialist(parameters.scaling_coef, place, names)}


class SpectralTransform(Transform):
    """Transforms matrices; what else there is becomes a share of the mean task vector.

    Attributes:
        method: whose it is, for messages.
    """

    method: str

    @property
    def dtype(self) -> torch.dtype:
        """As task vectors, or float32 where one stands for all of them: it is still less to read."""
        import torch

        return torch.float32 if self.is_shared else torch.bfloat16

    def of(self, vectors: list[Tensor]) -> list[Tensor]:
        """New matrices, or for other tensors τₖ / K.

        Raises:
            InputError: naming the method, where a task vector or their sum is not finite.
        """
        floats = [vector.float() for vector in vectors]
        # LAPACK would print lines of its own.
        if not sum_of([vector.abs() for vector in floats]).isfinite().all():
            raise InputError(
                f"{self.method}: task vectors, or their sum, are not finite in bf16; the specialist is too far from "
                "the base: leave it out, or check its weights"
            )
        if vectors[0].dim() == 2 and min(vectors[0].shape) > 1:
            return self.matrices(floats)
        shares = [vector / len(vectors) for vector in floats]
        return [sum_of(shares)] if self.is_shared else shares

    @abstractmethod
    def matrices(self, vectors: list[Tensor]) -> list[Tensor]:
        """What stands for task vectors that are matrices, float32 [rows, columns]: one for each, or one for all."""
