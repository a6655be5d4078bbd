"""What a merging method is: typed hyper-parameters, what it prepares, and one element-wise function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mergebench_ray import kernels
from mergebench_ray.methods.parameters import MethodParameters, TensorPlace
from mergebench_ray.methods.solver import Solver
from mergebench_ray.methods.statistics import Calibrated, Statistics

if TYPE_CHECKING:  # hyper-parameters are checked before torch is imported, which takes a second or two
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, BlockFunction, Scalars


class Method(ABC):
    """A merging method that is element-wise once a few numbers are known.

    A merge runs `prepare` once, `scalars` for every tensor, and `merge_block` over all parameters in one fused pass.
    A method keeps no state and knows nothing of shards, devices or processes.

    Attributes:
        name: as users write it.
        summary: one line for `mergebench-ray methods`.
        source: paper, with its arXiv number.
        Parameters: hyper-parameters with their ranges.
        statistics: what `prepare` asks `Statistics` for, by name; shown to users, and weighed by the planner.
        uses_position: whether `merge_block` reads `block.position` (random masks do).
        shared_companion: whether there is one companion for all specialists, not one for each.

    A method that is calibrated says for which hyper-parameters (`calibration_samples`), asks for its statistics in
    `prepare`, and either reads them entry by entry (`companions`) or solves for whole tensors with them (`solver`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Parameters: ClassVar[type[MethodParameters]] = MethodParameters
    statistics: ClassVar[frozenset[str]] = frozenset()
    uses_position: ClassVar[bool] = False
    shared_companion: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Merged parameters, float32 [n]; pure element-wise torch operations, nothing in place.

        The caller rounds the result to the output dtype, once.
        """

    @abstractmethod
    def scalars(self, parameters: Any, prepared: Any, place: TensorPlace, specialists: Sequence[str]) -> Scalars:
        """Numbers that `merge_block` needs for one tensor; per-specialist ones in the order of sorted names.

        Args:
            parameters: an instance of `Parameters`, completed.
            prepared: what `prepare` returned.
            place: the tensor.
            specialists: sorted names.
        """

    def options(self, parameters: Any) -> dict[str, Any]:
        """Keyword arguments of `merge_block` that choose another formula; each combination is compiled once."""
        return {}

    def prepare(self, parameters: Any, statistics: Statistics) -> Any:
        """Turn global statistics into what `scalars` needs, such as thresholds."""
        return None

    def calibration_samples(self, parameters: Any) -> int | None:
        """Samples of each specialist's calibration data that a merge depends on; None if it takes none."""
        return None

    def companions(self, parameters: Any, prepared: Any) -> tuple[Calibrated, ...]:
        """What `merge_block` reads beside or in place of task vectors: a file a specialist, with equal shapes."""
        return ()

    def companion_dtype(self, parameters: Any) -> torch.dtype | None:
        """Type of the companions; None where there are none."""
        return None

    def solver(self, parameters: Any, prepared: Any) -> Solver | None:
        """How to get the tensors that are not merged entry by entry, if there are any."""
        return None

    def kernel(self, parameters: Any) -> BlockFunction:
        """The function to run for these hyper-parameters."""
        options = tuple(sorted(self.options(parameters).items()))
        companion = self.companion_dtype(parameters)
        return kernels.BlockFunction(self.merge_block, options, self.uses_position, companion, self.shared_companion)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum from first to last: the order is part of the result's bits."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
