"""How a sweep names the race of its candidates."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mergebench_ray.config.fields import Line, Plain, Strict

AUTO = "auto"
NONE = "none"


class RaceOptions(Strict):
    """Which candidates are scored on. What is not given is up to the kind."""

    kind: Line = Field(
        default=AUTO,
        description="auto races by a pool where there are more than 8 candidates and scores in full otherwise; else "
        "pool, sparing, halving, exact, none, or a scheduler of Ray Tune by its class name.",
    )
    look: int | None = Field(default=None, ge=1, le=10**6, description="Items between two looks; 20, of sparing 10.")
    p: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="pool: a candidate is stopped when its chance to beat the leader is below; 0.12, of sparing 0.2.",
    )
    survivors: int | None = Field(
        default=None, ge=2, le=1000, description="pool: candidates that wait before they are raised together; 8."
    )
    alpha: float | None = Field(
        default=None, gt=0, le=0.5, description="exact: chance to stop the best candidate, at most; 0.05."
    )
    in_flight: int | None = Field(
        default=None,
        ge=1,
        le=10**5,
        description="Sequences that an engine computes at a time: with few, little is thrown away at a stop. (On CPUs "
        "nothing is at the first look: other items begin after it.) None for one look's items on CPUs, four looks' on "
        "GPUs, and without a race for as many as vLLM takes.",
    )
    scheduler_options: dict[Line, Plain] = Field(
        default_factory=dict, description="Keyword arguments of a scheduler of Ray Tune."
    )


def _accept_bare_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


RaceSpec = Annotated[RaceOptions, BeforeValidator(_accept_bare_kind)]
"""A race, or its kind alone."""
