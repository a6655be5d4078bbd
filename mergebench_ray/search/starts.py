"""Proposals that cost nothing: coefficients that follow from the sizes of the task vectors.

Both rules are for the sum of scaled task vectors. A searched range cuts off what lies outside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergebench_ray.config import Choices, Fixed, Range, Sweep
from mergebench_ray.kernels.histogram import norms
from mergebench_ray.methods import get_method
from mergebench_ray.runs.trials import COEFFICIENTS
from mergebench_ray.search.space import METHOD, Space

if TYPE_CHECKING:
    from mergebench_ray.bank import Bank

_SUMS = ("task_arithmetic", "dare")  # what adds scaled task vectors up, DARE on average; the first gets the candidates
_USUAL = 0.4  # what is used where nothing is known
_EVERY = 5  # one candidate in five at most is such a one
_EQUAL, _UNEQUAL = (3.5, 1.15), (16.0, 0.5)  # largest over smallest task vector, and κ there


def free_proposals(sweep: Sweep, space: Space, bank: Bank) -> dict[str, dict[str, Any]]:
    """What the weights say before anything is scored: name of a rule -> a suggestion that Optuna can enqueue.

    Args:
        sweep: may want none.
        space: of the sweep.
        bank: has the task vectors.
    """
    if not sweep.search.free_proposals or _method(sweep) is None:
        return {}
    sizes = norms(bank.statistics.magnitude_histograms())
    return starts(sweep, space, dict(zip(bank.specialists, sizes, strict=True)))


def starts(sweep: Sweep, space: Space, sizes: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Name of each rule and its candidate, as a suggestion that Optuna can enqueue.

    No candidate comes twice, nor does one of the sweep's points.

    Args:
        sweep: says which coefficients are searched, and for how many candidates there is room.
        space: of the sweep.
        sizes: specialist -> ‖τ‖ of its task vector.
    """
    method = _method(sweep)
    if method is None:
        return {}
    parameters = sweep.methods[method]
    given = {METHOD: method} | {
        name: _default(method, name, one)
        for name, one in parameters.items()
        if name != COEFFICIENTS and not isinstance(one, Fixed)
    }
    searched = parameters[COEFFICIENTS]
    assert isinstance(searched, Range)
    points = space.points(sweep.search.points_to_evaluate)
    found: dict[str, dict[str, Any]] = {}
    for rule, coefficients in _rules(sizes).items():
        cut = {name: _inside(value, searched) for name, value in coefficients.items()}
        is_shared = len(set(cut.values())) == 1
        if not is_shared and searched.per != "specialist":
            continue
        [point] = space.points([given | {COEFFICIENTS: next(iter(cut.values())) if is_shared else cut}])
        if point not in [*points, *found.values()]:
            found[rule] = point
    room = (sweep.search.most_candidates - len(sweep.search.points_to_evaluate)) // _EVERY
    return dict([*found.items()][:room])


def _method(sweep: Sweep) -> str | None:
    """The method that gets the candidates."""
    return next((name for name in _SUMS if isinstance(sweep.methods.get(name, {}).get(COEFFICIENTS), Range)), None)


def _rules(sizes: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Coefficients of each rule, the most promising rule first."""
    shared = {"kappa": kappa(list(sizes.values())), "usual": _USUAL, "average": 1 / len(sizes)}
    return {"metagpt": metagpt(sizes)} | {rule: dict.fromkeys(sizes, value) for rule, value in shared.items()}


def metagpt(sizes: Mapping[str, float]) -> dict[str, float]:
    """λₖ = ‖τₖ‖² / Σ ‖τ‖² (MetaGPT, arXiv 2406.11385)."""
    total = math.fsum(size**2 for size in sizes.values())
    return {name: size**2 / total if total else 1 / len(sizes) for name, size in sizes.items()}


def kappa(sizes: Sequence[float]) -> float:
    """One coefficient for all: κ / √K, where κ is the smaller, the less alike the task vectors are (arXiv 2608.17366).

    κ is 1.15 where the largest is at most 3.5 times the smallest, 0.5 where it is 16 times, and goes with the logarithm
    between them.
    """
    ratio = max(sizes) / min(sizes) if min(sizes) > 0 else math.inf
    (low, most), (high, least) = _EQUAL, _UNEQUAL
    share = min(max(math.log(ratio / low) / math.log(high / low), 0.0), 1.0) if math.isfinite(ratio) else 1.0
    return (most + share * (least - most)) / math.sqrt(len(sizes))


def _default(method: str, name: str, parameter: Range | Choices | Fixed) -> Any:
    """A method's default, or what comes nearest to it of what is searched."""
    default = get_method(method).Parameters.model_fields[name].default
    if isinstance(parameter, Range):
        return _inside(default, parameter)
    assert isinstance(parameter, Choices)
    return default if default in parameter.choices else parameter.choices[0]


def _inside(value: float, searched: Range) -> float:
    inside = min(max(value, searched.low), searched.high)
    return round(inside) if searched.integer else inside
