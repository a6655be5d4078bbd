"""Finding objectives by name, those of other packages included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from mergebench_ray.config.objective import OneObjective
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.extensions import import_extensions
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.weighted_domains import WeightedDomains, weights_name

ENTRY_POINTS = "mergebench_ray.objectives"
"""Group of entry points by which other packages bring objectives: modules, or classes, that `register` theirs."""


ClassT = TypeVar("ClassT", bound=type[Any])
"""An objective's class: its name is its own, and it is made of references alone."""

_objectives: dict[str, type[Any]] = {}


def register(objective: ClassT) -> ClassT:
    """Make an objective's class known under its name.

    Raises:
        ValueError: if the name is taken by another class.
    """
    known = _objectives.get(objective.name)
    if known is not None and _place(known) != _place(objective):
        raise ValueError(f"objective {objective.name!r} is registered twice: {known} and {objective}")
    _objectives[objective.name] = objective
    return objective


def objective_names() -> list[str]:
    """Names of all objectives that are no domain's, sorted."""
    _scan()
    return sorted(_objectives)


def check_objective(spec: OneObjective, domains: Sequence[str], where: str) -> None:
    """Refuse an objective that is not known.

    Args:
        spec: a name, or weights of domains.
        domains: that are scored.
        where: the key of the sweep, for the message.

    Raises:
        InputError: naming the closest known name.
    """
    for domain in () if isinstance(spec, str) else spec:
        if domain not in domains:
            raise InputError(f"{where}: {domain!r:.80} is no domain that is scored; {nearest(domain, domains)}")
    if isinstance(spec, str) and spec not in (*objective_names(), *domains):
        known = [*objective_names(), *domains]
        raise InputError(f"{where} = {spec!r:.80}: no such objective or scored domain; {nearest(spec, known)}")


def objective_name(spec: OneObjective) -> str:
    """What the objective is called."""
    return spec if isinstance(spec, str) else weights_name(spec)


def make_objective(spec: OneObjective, references: References) -> Objective:
    """The objective, bound to what it measures against.

    Args:
        spec: a name, or weights of domains, as `check_objective` passed it.
        references: scores of specialists and base.
    """
    _scan()
    if isinstance(spec, str) and spec in _objectives:
        objective: Objective = _objectives[spec](references)
        return objective
    return WeightedDomains({spec: 1.0} if isinstance(spec, str) else spec, references)


@cache
def _scan() -> None:
    assert __package__ is not None
    import_extensions(__package__, ENTRY_POINTS)


def _place(objective: type[Any]) -> tuple[str, str]:
    return objective.__module__, objective.__qualname__
