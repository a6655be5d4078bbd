"""RAM+: as RAM, and more of what one specialist alone moves, the more of its entries others move as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from mergebench_ray import kernels
from mergebench_ray.methods import Statistics, TensorPlace, register, sum_of
from mergebench_ray.methods.ram import Ram, RamParameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block, Scalars


class RamPlusParameters(RamParameters):
    """Hyper-parameters of RAM+."""

    r: float = Field(default=0.1, ge=0, le=10, description="How much more of what is moved alone.")
    alpha: float = Field(default=0.2, ge=0, le=1e6, description="Largest ratio of shared to own entries that counts.")


class Moved(NamedTuple):
    """Entries of a tensor that a specialist moves: with others, and alone."""

    shared: int
    alone: int


@register
class RamPlus(Ram):
    """As RAM; what only k moves is multiplied with 1 + r · min(shared / alone, α), counted in each tensor.

    `shared` and `alone` are how many entries of the tensor k moves together with others, and by itself.
    """

    name = "ram_plus"
    summary = "as ram, and more of what a specialist moves alone where it shares much else"
    source = "Reinforced Agent Merging, arXiv 2601.13572"
    Parameters = RamPlusParameters
    statistics = frozenset({"magnitudes"})

    def prepare(self, parameters: RamPlusParameters, statistics: Statistics) -> Mapping[str, list[Moved]]:
        """How many entries each specialist moves in each tensor: with others, and alone."""
        places = range(len(statistics.specialists))
        ones = [{"epsilon": [parameters.epsilon], "is": [float(k == one) for k in places]} for one in places]
        alone = statistics.totals(kernels.BlockFunction(moved_alone), ones)
        return {
            name: [
                Moved(one.count_above(parameters.epsilon) - own, own)
                for one, own in zip(magnitudes, alone[name], strict=True)
            ]
            for name, magnitudes in statistics.magnitudes().items()
        }

    def scalars(
        self,
        parameters: RamPlusParameters,
        prepared: Mapping[str, list[Moved]],
        place: TensorPlace,
        specialists: Sequence[str],
    ) -> Scalars:
        """How much more counts what was moved alone."""
        ratios = [moved.shared / max(moved.alone, parameters.epsilon, 1e-30) for moved in prepared[place.name]]
        more = [1 + parameters.r * min(ratio, parameters.alpha) for ratio in ratios]
        return {"epsilon": [parameters.epsilon], "alone": more}


def moved_alone(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """1 where the specialist that `is` says, and no other, moves an entry."""
    moves = [(vector.abs() > scalars["epsilon"]).float() for vector in block.task_vectors]
    own = sum_of([scalars["is"][k] * moved for k, moved in enumerate(moves)])
    return own * (sum_of(moves) == 1).float()
