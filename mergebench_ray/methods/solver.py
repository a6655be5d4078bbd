"""Tensors that are solved for as a whole, where a method is not element-wise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergebench_ray.outside_code import taken_along

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Solver(ABC):
    """Tensors that are solved for as a whole, not entry by entry; pickled to whoever holds the weights.

    Attributes:
        groups: names of the tensors that are solved for together.
        system_key: what `system` depends on besides the models; empty where `solve` needs none.
        key: what the solutions depend on besides the models.
    """

    groups: tuple[tuple[str, ...], ...]
    system_key: str
    key: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        """With the file of its class, where that is a user's own."""
        return taken_along(type(self), super().__reduce_ex__(protocol))

    def __contains__(self, name: object) -> bool:
        """Whether a tensor is solved for."""
        return name in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for group in self.groups for name in group)

    def system(self, group: Sequence[str], weights: Callable[[str], list[Tensor]], device: torch.device) -> Any:
        """What solutions of a group share whatever the hyper-parameters; kept between merges.

        Args:
            group: one of `groups`.
            weights: gives a tensor of the base and of every specialist, in its own shape, on the device.
            device: where to compute.
        """
        return None

    @abstractmethod
    def solve(self, group: Sequence[str], system: Any) -> list[Tensor]:
        """The merged tensors of a group, in its order, in a floating-point type that is rounded once."""
