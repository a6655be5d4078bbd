"""What a merging method is: typed hyper-parameters, what it prepares, and one element-wise function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.config.fields import Strict

if TYPE_CHECKING:  # hyper-parameters are checked before torch is imported, which takes a second or two
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, BlockFunction, Scalars

Coefficient = Annotated[float, Field(ge=-2, le=3, allow_inf_nan=False)]
ScalingCoefficient = Coefficient | dict[str, Coefficient | Annotated[list[Coefficient], Field(min_length=1)]]
"""λ: one number, one per specialist, or per specialist one per layer group."""


class MethodParameters(Strict):
    """Hyper-parameters of a method; unknown names are refused.

    A field listed in `per_specialist` may be one number or a mapping from specialist to number (or to numbers per
    layer group); `completed` writes it out for every specialist.
    """

    per_specialist: ClassVar[frozenset[str]] = frozenset()

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """All hyper-parameters as plain JSON values, in one canonical form.

        Raises:
            ValueError: naming the parameter and the rule.
        """
        values = self.model_dump(mode="json")
        for name in sorted(self.per_specialist):
            values[name] = _expand(name, values[name], specialists, layers)
        return values


def _expand(name: str, value: Any, specialists: Sequence[str], layers: int) -> dict[str, Any]:
    """A value for each specialist; lists of equal numbers become that number, so that equal merges are equal."""
    if not isinstance(value, dict):
        return dict.fromkeys(sorted(specialists), value)
    if set(value) != set(specialists):
        odd = ", ".join(sorted(set(value) ^ set(specialists)))
        raise ValueError(
            f"{name} needs exactly the specialists {', '.join(sorted(specialists))}; wrong or missing: {odd}"
        )
    for specialist, number in value.items():
        if isinstance(number, list) and len(number) > max(layers, 1):
            raise ValueError(f"{name}.{specialist} has {len(number)} layer groups, but the model has {layers} layers")
    return {specialist: _collapse(value[specialist]) for specialist in sorted(value)}


def _collapse(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


@dataclass(frozen=True)
class TensorPlace:
    """Which tensor scalars are for.

    Attributes:
        name: name in the checkpoint.
        layer: index of its layer; None outside the layers (the final norm).
        num_layers: layers of the model.
        part: which run of 2**30 entries of the tensor; 0 but for huge tensors.
    """

    name: str
    layer: int | None
    num_layers: int
    part: int = 0


def layer_group(place: TensorPlace, groups: int) -> int:
    """Group of a tensor when the layers are cut into `groups` runs; tensors outside the layers join the last."""
    return groups - 1 if place.layer is None else place.layer * groups // place.num_layers


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

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over those entries; its values must be small whole numbers (|v| <= 8)."""

    def calibrated(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """A statistic of every specialist, in the order of their sorted names, or one of all of them."""


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

    A method that is calibrated says for which hyper-parameters (`calibration_samples`), asks for its statistics in
    `prepare`, and either reads them entry by entry (`companions`) or solves for whole tensors with them (`solver`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Parameters: ClassVar[type[MethodParameters]] = MethodParameters
    statistics: ClassVar[frozenset[str]] = frozenset()
    uses_position: ClassVar[bool] = False

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
        """Statistics that `merge_block` reads beside the task vectors, one file a specialist, with equal shapes."""
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
        return kernels.BlockFunction(self.merge_block, options, self.uses_position, self.companion_dtype(parameters))


def per_specialist(values: Any, place: TensorPlace, specialists: Sequence[str]) -> list[float]:
    """One number per specialist for a tensor.

    Args:
        values: one number, or specialist -> number, or specialist -> one number per layer group.
        place: the tensor.
        specialists: sorted names.
    """
    numbers = []
    for specialist in specialists:
        value = values[specialist] if isinstance(values, Mapping) else values
        numbers.append(float(value[layer_group(place, len(value))] if isinstance(value, list) else value))
    return numbers


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum from first to last: the order is part of the result's bits."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
