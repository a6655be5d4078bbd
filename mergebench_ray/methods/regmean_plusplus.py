"""RegMean++: RegMean layer by layer, each layer seeing what the layers merged before it produce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergebench_ray.methods import Calibrated, CalibrationRequest, Solver, Statistics, register
from mergebench_ray.methods.regmean import RegMean, RegMeanParameters

if TYPE_CHECKING:
    from torch import Tensor


class RegMeanPlusPlusParameters(RegMeanParameters):
    """Hyper-parameters of RegMean++."""

    reduction: float = Field(default=0.1, ge=0, le=1, description="Factor of the Gram matrices' off-diagonal entries.")


@register
class RegMeanPlusPlus(RegMean):
    """RegMean, with the inputs of layer l + 1 being what the merged layers 0 to l make of each specialist's data.

    So every reduction needs a walk of its own through the layers, whose merged linear layers are kept on disk.
    """

    name = "regmean_plusplus"
    summary = "RegMean layer by layer, on the merged model's own activations"
    source = "RegMean++, arXiv 2508.03121"
    Parameters = RegMeanPlusPlusParameters
    statistics = frozenset({"layerwise"})

    def prepare(self, parameters: RegMeanParameters, statistics: Statistics) -> tuple[Calibrated, ...]:
        """The merged linear layers."""
        options = (("reduction", parameters.reduction),)
        return statistics.calibrated(CalibrationRequest("layerwise", parameters.calibration_samples, options))

    def solver(self, parameters: Any, prepared: tuple[Calibrated, ...]) -> Solver:
        """Reads what the walk has left."""
        walk = prepared[0]
        return SolvedBefore(tuple(names for _, names in walk.groups), "", walk.key, walk.path)


@dataclass(frozen=True)
class SolvedBefore(Solver):
    """Merged tensors that are on disk already.

    Attributes:
        file: holds them by name.
    """

    groups: tuple[tuple[str, ...], ...]
    system_key: str
    key: str
    file: Path

    def solve(self, group: Sequence[str], system: None) -> list[Tensor]:
        """Read them."""
        from mergebench_ray.checkpoints.safetensors_file import read_tensors

        return read_tensors(self.file, group)
