"""Hyper-parameters: typed, one canonical form for equal merges, and their values for one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mergebench_ray.config.fields import Strict

Coefficient = Annotated[float, Field(ge=-2, le=3, allow_inf_nan=False)]


class LineOverLayers(Strict):
    """A number that goes in a straight line over the layers (LiNeS, arXiv 2410.17146)."""

    first: Coefficient = Field(description="Of the first layer.")
    last: Coefficient = Field(description="Of the last layer, and of what is outside the layers.")


ScalingCoefficient = (
    Coefficient | dict[str, Coefficient | Annotated[list[Coefficient], Field(min_length=1)] | LineOverLayers]
)
"""λ: one number, one per specialist, or per specialist one per layer group or the ends of a line over the layers."""


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
    """A value for each specialist; equal numbers become one number, so that equal merges are equal."""
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
    numbers = list(value.values()) if isinstance(value, dict) else value
    return numbers[0] if isinstance(numbers, list) and len(set(numbers)) == 1 else value


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


def per_specialist(values: Any, place: TensorPlace, specialists: Sequence[str]) -> list[float]:
    """One number per specialist for a tensor.

    Args:
        values: one number, or specialist -> number, or specialist -> one number per layer group, or the line's ends.
        place: the tensor.
        specialists: sorted names.
    """
    numbers = []
    for specialist in specialists:
        value = values[specialist] if isinstance(values, Mapping) else values
        numbers.append(_in_layer(value, place))
    return numbers


def _in_layer(value: Any, place: TensorPlace) -> float:
    if isinstance(value, list):
        return float(value[layer_group(place, len(value))])
    if isinstance(value, Mapping | LineOverLayers):
        return _on_line(LineOverLayers.model_validate(value), place)
    return float(value)


def _on_line(line: LineOverLayers, place: TensorPlace) -> float:
    steps = place.num_layers - 1
    share = 1.0 if place.layer is None or not steps else place.layer / steps
    return line.first + share * (line.last - line.first)
