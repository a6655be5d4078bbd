"""What a sweep says of a hyper-parameter: a value that stays, a range, or choices."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mergebench_ray.config.fields import MODULE_KINDS, Plain, Strict

Value = bool | int | float | str

LINE = ("first", "last")
"""Ends of a coefficient that goes in a straight line over the layers."""

_MAX_EXACT = 2**53  # up to here every integer is a float


class Range(Strict):
    """Numbers between two bounds, searched."""

    low: float = Field(allow_inf_nan=True, description="Smallest number.")
    high: float = Field(allow_inf_nan=True, description="Largest number.")
    log: bool = Field(default=False, description="Search the logarithm; needs low > 0.")
    integer: bool = Field(default=False, description="Whole numbers only.")
    grow_to: tuple[float, float] | None = Field(
        default=None,
        description="Bounds up to which low and high move on where the best candidates lie there; None for a range "
        "that stays.",
    )
    per: Literal["all", "specialist"] = Field(default="all", description="One number for all, or one per specialist.")
    layer_groups: int = Field(
        default=1, ge=1, le=1000, description="With per: specialist, one number per group of layers."
    )
    lines: bool = Field(
        default=False,
        description="With per: specialist, two numbers, of the first and the last layer: between them a straight line.",
    )
    module_kinds: bool = Field(
        default=False,
        description=f"With per: specialist, all that once for each kind of module: {', '.join(MODULE_KINDS)}.",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"needs finite low < high, got low {self.low}, high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs low > 0, got {self.low}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer: true needs whole bounds, got low {self.low}, high {self.high}")
        if self.grow_to is not None:
            self._check_grow_to(*self.grow_to)
        if max(map(abs, self.widest)) > _MAX_EXACT:
            raise ValueError(f"needs bounds between -2**53 and 2**53, got low {self.low}, high {self.high}")
        if self.layer_groups > 1 and self.per != "specialist":
            raise ValueError("layer_groups needs per: specialist")
        if self.lines and (self.per != "specialist" or self.layer_groups > 1 or self.integer):
            raise ValueError("lines needs per: specialist, without layer_groups or integer: true")
        if self.module_kinds and self.per != "specialist":
            raise ValueError("module_kinds needs per: specialist")
        return self

    def _check_grow_to(self, low: float, high: float) -> None:
        if not low <= self.low < self.high <= high or (low, high) == (self.low, self.high):
            raise ValueError(f"grow_to needs a range around low {self.low} and high {self.high}, got {low} to {high}")
        if self.log and low <= 0:
            raise ValueError(f"log: true needs grow_to above 0, got {low}")
        if self.integer and not (low.is_integer() and high.is_integer()):
            raise ValueError(f"integer: true needs whole bounds, got grow_to {low} to {high}")

    @property
    def widest(self) -> tuple[float, float]:
        """The bounds, as far as they may move."""
        return (self.low, self.high) if self.grow_to is None else self.grow_to

    @property
    def paths(self) -> tuple[tuple[str | int, ...], ...]:
        """With `per: specialist`, where each number of a specialist stands in its coefficient.

        A kind of module, then a layer group or an end of the line, as far as there are such; one empty path where a
        specialist has one number.
        """
        kinds: list[tuple[str | int, ...]] = [(kind,) for kind in MODULE_KINDS] if self.module_kinds else [()]
        places: list[str | int] = [*LINE] if self.lines else [*range(self.layer_groups)]
        return tuple((*kind, place) for kind in kinds for place in places) if len(places) > 1 else tuple(kinds)


class Choices(Strict):
    """One of several values, searched."""

    choices: list[Annotated[Value, Plain]] = Field(min_length=1, max_length=1000, description="The values.")

    @field_validator("choices")
    @classmethod
    def _check_distinct(cls, choices: list[Value]) -> list[Value]:
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"{choice!r} is given twice (true counts as 1, false as 0)")
        return choices


class Fixed(Strict):
    """A value that is not searched."""

    value: Plain = Field(description="The value; a bare value stands for {value: VALUE}.")


def _kind(value: Any) -> str:
    if isinstance(value, Range | Choices | Fixed):
        return {Range: "range", Choices: "choices", Fixed: "fixed"}[type(value)]
    if isinstance(value, dict) and "choices" in value:
        return "choices"
    if isinstance(value, dict) and {"low", "high"} & set(value):
        return "range"
    return "fixed"


def _is_bare(value: Any) -> bool:
    """Whether a value was written as it stands, not as a range, choices or an already parsed `Fixed`."""
    return (
        _kind(value) == "fixed"
        and not isinstance(value, Fixed)
        and not (isinstance(value, dict) and [*value] == ["value"])
    )


Parameter = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")] | Annotated[Fixed, Tag("fixed")],
    Discriminator(_kind),
]


def with_fixed_values(parameters: Any) -> Any:
    """A method's hyper-parameters as read, with bare values turned into `Fixed`; none where nothing stands there."""
    if not isinstance(parameters, dict | None):
        return parameters
    return {key: {"value": value} if _is_bare(value) else value for key, value in (parameters or {}).items()}
