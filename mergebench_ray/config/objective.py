"""How a sweep names what it is after."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from mergebench_ray.config.fields import Line
from mergebench_ray.config.names import Name

DEFAULT = "normalised_average"
FORGETTING = "forgetting"
"""The objective that needs more than domains scored: what is kept of the base."""
Weights = Annotated[
    dict[Name, Annotated[float, Field(gt=0, le=1e6)]],
    Field(min_length=1, description="Domain -> its weight; only their ratios count."),
]


def _kind(value: Any) -> str:
    return "weights" if isinstance(value, dict) else "name"


def _check_kind(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("expected one objective: a name, or weights of domains such as {math: 2, coding: 1}")
    return value


ObjectiveSpec = Annotated[
    Annotated[Line, Tag("name")] | Annotated[Weights, Tag("weights")],
    Discriminator(_kind),
    BeforeValidator(_check_kind),
]
"""An objective's or domain's name, or domain -> its weight."""
