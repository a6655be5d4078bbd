"""What a method may ask about all weights at once, or about calibration data, before it merges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergebench_ray.outside_code import taken_along

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import BlockFunction, Magnitudes, Scalars


_TRANSFORM_BYTES, _TRANSFORM_BYTES_EACH = 30, 26
"""Memory that transforms take while they are at a tensor, for each of its entries: the same for any number of
specialists, and for each of them."""


def transform_bytes(entries: int, num_specialists: int) -> int:
    """Memory that any of the package's transforms takes at most while it is at a tensor.

    Args:
        entries: of the tensor.
        num_specialists: K.
    """
    return (_TRANSFORM_BYTES + _TRANSFORM_BYTES_EACH * num_specialists) * entries


InnerProducts = Sequence[Sequence[float]]
"""Inner products of the base and each task vector with one another, (K + 1) x (K + 1), of one tensor."""


@dataclass(frozen=True)
class CalibrationRequest:
    """A statistic that takes calibration data, made once and kept on disk.

    Attributes:
        kind: which one (a file of `mergebench_ray.calibration`).
        samples: calibration samples of each specialist.
        options: hyper-parameters that it depends on.
        thresholds: a magnitude for each specialist that it starts from; follows from the options and the weights.
    """

    kind: str
    samples: int
    options: tuple[tuple[str, float], ...] = ()
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Calibrated:
    """A statistic on disk.

    Attributes:
        path: safetensors file.
        key: digest of all that determines its content.
        groups: where several tensors share one entry of the file: entry -> names of the tensors.
    """

    path: Path
    key: str
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Transform(ABC):
    """Makes, of all task vectors of a tensor, others in their place, or what is read beside them.

    A search pays for that once: it is written tensor by tensor, by as many processes as there is room for, and then
    read in the passes as task vectors are. Pickled to those processes.

    Attributes:
        key: what it depends on besides the models, such as its name and its settings.
        is_shared: whether it makes one tensor for all specialists, not one for each.
        dtype: what that is kept in.
    """

    key: str
    is_shared: bool

    def __reduce_ex__(self, protocol: Any) -> Any:
        """With the file of its class, where that is a user's own."""
        return taken_along(type(self), super().__reduce_ex__(protocol))

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What it is kept in: float32, bfloat16 or uint8."""

    @abstractmethod
    def of(self, vectors: list[Tensor]) -> list[Tensor]:
        """What is made of a tensor's task vectors, bf16 of its shape, on one thread; to be rounded once."""


class Statistics(Protocol):
    """What a method may ask for while it prepares; whoever holds the weights answers, once, from all shards.

    Attributes:
        specialists: sorted names.
        num_entries: n, the entries of a task vector that count for global thresholds.
    """

    @property
    def specialists(self) -> Sequence[str]:
        """Sorted names."""

    @property
    def num_entries(self) -> int:
        """Entries of a task vector that count for global statistics (an untied output head included)."""

    def magnitude_histograms(self) -> Tensor:
        """Exact counts of the magnitudes of every task vector, int64 [K, 32768]."""

    def magnitudes(self) -> Mapping[str, Sequence[Magnitudes]]:
        """Exact counts of the magnitudes of each task vector in each merged tensor, by its name."""

    def values(
        self, function: BlockFunction, scalars: Mapping[str, Sequence[Scalars]]
    ) -> Mapping[str, Sequence[Magnitudes]]:
        """Magnitudes of an element-wise function, rounded to bf16, in each merged tensor, for each of its scalars."""

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over those entries; its values must be small whole numbers (|v| <= 8)."""

    def totals(self, function: BlockFunction, scalars: Sequence[Scalars]) -> Mapping[str, Sequence[int]]:
        """Sums as `total` gives them, over each merged tensor, by its name: one for each of several scalars."""

    def inner_products(self) -> Mapping[str, InnerProducts]:
        """Exact inner products of base and task vectors, by name of each merged tensor."""

    def transformed(self, transform: Transform) -> tuple[Calibrated, ...]:
        """What a transform makes of the task vectors, made once and kept on disk: a file a specialist, or one."""

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """A statistic of every specialist, in the order of their sorted names, or one of all of them."""
