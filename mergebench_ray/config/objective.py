"""How a sweep names what it is after: one objective or several, and which of what several leave is taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from mergebench_ray.config.fields import Line
from mergebench_ray.config.names import Name

DEFAULT = "normalised_average"
FORGETTING = "forgetting"
"""The objective that needs more than domains scored: what is kept of the base."""
KNEE: Literal["knee"] = "knee"
_MOST = 20  # objectives: of more, nearly every candidate is better than all others in something
Weights = Annotated[
    dict[Name, Annotated[float, Field(gt=0, le=1e6)]],
    Field(min_length=1, description="Domain -> its weight; only their ratios count."),
]


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "several"
    return "weights" if isinstance(value, dict) else "name"


def _check_one(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("expected one objective: a name, or weights of domains such as {math: 2, coding: 1}")
    return value


def _check_kind(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _check_one(value)
    if len(value) < 2:
        raise ValueError("a list is of at least two objectives; write one without the brackets")
    return value


OneObjective = Annotated[
    Annotated[Line, Tag("name")] | Annotated[Weights, Tag("weights")],
    Discriminator(_kind),
    BeforeValidator(_check_one),
]
"""An objective's or domain's name, or domain -> its weight."""
ObjectiveSpec = Annotated[
    Annotated[Line, Tag("name")]
    | Annotated[Weights, Tag("weights")]
    | Annotated[list[OneObjective], Field(max_length=_MOST), Tag("several")],
    Discriminator(_kind),
    BeforeValidator(_check_kind),
]
"""One objective, or at least two."""


def each_objective(spec: ObjectiveSpec) -> list[OneObjective]:
    """The objectives of a sweep, which may be one."""
    return list(spec) if isinstance(spec, list) else [spec]


# Which model of a front is taken

_Share = Annotated[float, Field(ge=-1e6, le=1e6)]
ByWeights = dict[Literal["weights"], Annotated[dict[Line, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)]]
ByFloors = dict[Literal["floors"], Annotated[dict[Line, _Share], Field(min_length=1)]]


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((key for key in ("weights", "floors") if list(value) == [key]), None)
    return KNEE if value == KNEE else None


def _check_choice(value: Any) -> Any:
    if _choice_kind(value) is None:
        raise ValueError(
            "expected knee, {weights: {OBJECTIVE: WEIGHT, ...}} or {floors: {OBJECTIVE: LEAST, ...}}, one of them"
        )
    return value


ChoiceSpec = Annotated[
    Annotated[Literal["knee"], Tag("knee")] | Annotated[ByWeights, Tag("weights")] | Annotated[ByFloors, Tag("floors")],
    Discriminator(_choice_kind),
    BeforeValidator(_check_choice),
]
"""What takes one model of those of which none is better in everything."""


def choice_values(choice: ChoiceSpec) -> dict[str, float]:
    """Objective -> its weight or floor; empty of the knee."""
    return {} if isinstance(choice, str) else dict(next(iter(choice.values())))
