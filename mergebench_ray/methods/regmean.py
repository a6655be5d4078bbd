"""RegMean: linear layers whose outputs are nearest to those of the specialists, on each one's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray.methods import (
    Calibrated,
    CalibrationRequest,
    Method,
    MethodParameters,
    Solver,
    Statistics,
    TensorPlace,
    register,
    sum_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars
    from mergebench_ray.kernels.regression import RegressionSystem


class RegMeanParameters(MethodParameters):
    """Hyper-parameters of RegMean."""

    reduction: float = Field(default=0.5, ge=0, le=1, description="Factor of the Gram matrices' off-diagonal entries.")
    calibration_samples: int = Field(default=1000, ge=1, le=10_000_000, description="Samples of each specialist.")


@register
class RegMean(Method):
    """W = (Σ Gₖ)⁻¹ Σ Gₖ Wₖ for every linear layer; all other merged tensors are the plain average.

    Gₖ is XᵀX / rows of the layer's inputs in specialist k on its own data, its off-diagonal entries times `reduction`.
    """

    name = "regmean"
    summary = "least-squares fit of every linear layer to the specialists' outputs"
    source = "RegMean, arXiv 2212.09849"
    Parameters = RegMeanParameters
    statistics = frozenset({"gram"})

    @staticmethod
    def merge_block(block: Block, scalars: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The plain average, for tensors that are not solved for."""
        return block.base + sum_of(block.task_vectors) / len(block.task_vectors)

    def scalars(self, parameters: Any, prepared: Any, place: TensorPlace, specialists: Sequence[str]) -> Scalars:
        """None."""
        return {}

    def calibration_samples(self, parameters: RegMeanParameters) -> int:
        """As the user says."""
        return parameters.calibration_samples

    def prepare(self, parameters: RegMeanParameters, statistics: Statistics) -> tuple[Calibrated, ...]:
        """The Gram matrices, which do not depend on the reduction."""
        return statistics.calibrated(CalibrationRequest("gram", parameters.calibration_samples))

    def solver(self, parameters: RegMeanParameters, prepared: tuple[Calibrated, ...]) -> Solver:
        """One linear system per group of layers with the same input."""
        entries = {names: entry for entry, names in prepared[0].groups}
        system_key = "+".join(statistic.key for statistic in prepared)
        return RegMeanSolver(
            groups=tuple(entries),
            system_key=system_key,
            key=f"{system_key} {parameters.reduction}",
            entries=tuple(entries.values()),
            files=tuple(statistic.path for statistic in prepared),
            reduction=parameters.reduction,
        )


@dataclass(frozen=True)
class RegMeanSolver(Solver):
    """The systems of a model.

    Attributes:
        entries: name of each group's Gram matrix in the files.
        files: Gram matrices of each specialist.
        reduction: factor of their off-diagonal entries.
    """

    groups: tuple[tuple[str, ...], ...]
    system_key: str
    key: str
    entries: tuple[str, ...]
    files: tuple[Path, ...]
    reduction: float

    def system(
        self, group: Sequence[str], weights: Callable[[str], list[Tensor]], device: torch.device
    ) -> tuple[RegressionSystem, list[int]]:
        """Sums over the specialists, with the layers of the group stacked; and the outputs of each layer."""
        import torch

        from mergebench_ray.checkpoints.safetensors_file import read_tensors
        from mergebench_ray.kernels.regression import regression_system

        entry = self.entries[self.groups.index(tuple(group))]
        grams = [gram.to(device) for file in self.files for gram in read_tensors(file, [entry])]
        layers = [weights(name) for name in group]
        base, *specialists = (torch.cat(stacked) for stacked in zip(*layers, strict=True))
        return regression_system(grams, base, specialists), [len(layer[0]) for layer in layers]

    def solve(self, group: Sequence[str], system: tuple[RegressionSystem, list[int]]) -> list[Tensor]:
        """The merged weights."""
        from mergebench_ray.kernels.regression import solve_regression

        sums, outputs = system
        return list(solve_regression(sums, self.reduction, ", ".join(group)).split(outputs))
