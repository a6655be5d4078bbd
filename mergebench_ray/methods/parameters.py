"""Hyper-parameters: typed, one canonical form for equal merges, and their values for one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mergebench_ray.config.fields import MODULE_KINDS, Line, ModuleKind, Strict
from mergebench_ray.config.hyper_parameters import LINE
from mergebench_ray.errors import nearest

Coefficient = Annotated[float, Field(ge=-2, le=3, allow_inf_nan=False)]

Number = TypeVar("Number")


class Rule(Strict, Generic[Number]):
    """A number for tensors with a text in their names; of several rules, the first that fits a tensor counts."""

    filter: Line | None = Field(default=None, description="Part of a tensor's name; none for all tensors.")
    value: Number | Annotated[list[Number], Field(min_length=1)] = Field(
        description="The number, or a gradient: numbers at equal distances over the layers, on straight lines between "
        "them; outside the layers the first."
    )


def _check_rules(rules: list[Any]) -> list[Any]:
    """Refuse rules that leave tensors without a number."""
    if all(rule.filter is not None for rule in rules):
        raise ValueError("says nothing of tensors that no filter fits; add {value: NUMBER} at the end")
    return rules


CoefficientRules = Annotated[list[Rule[Coefficient]], Field(min_length=1), AfterValidator(_check_rules)]
"""Numbers for tensors by their names and layers, as mergekit writes them."""


class LineOverLayers(Strict):
    """A number that goes in a straight line over the layers (LiNeS, arXiv 2410.17146)."""

    first: Coefficient = Field(description="Of the first layer.")
    last: Coefficient = Field(description="Of the last layer, and of what is outside the layers.")


OverLayers = Coefficient | Annotated[list[Coefficient], Field(min_length=1)] | LineOverLayers
"""A number, one per layer group, or the ends of a line over the layers."""


class ByModuleKind(Strict):
    """What differs between kinds of modules; a tensor's kind is told by its name."""

    attention: OverLayers = Field(description="Of what mixes tokens: attention, recurrent and state-space layers.")
    mlp: OverLayers = Field(description="Of everything else: feed-forward layers, experts, routers.")
    norm: OverLayers = Field(description="Of norms, wherever they are.")

    @model_validator(mode="before")
    @classmethod
    def _check_kinds(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and (unknown := sorted(map(str, {*values} - {*MODULE_KINDS}))):
            raise ValueError(f"unknown kind of module {unknown[0]!r:.80}; {nearest(unknown[0], MODULE_KINDS)}")
        if isinstance(values, Mapping) and (missing := [kind for kind in MODULE_KINDS if kind not in values]):
            raise ValueError(f"needs a value for each kind of module; missing: {', '.join(missing)}")
        return values


def _form(value: Any) -> str:
    """Which form of a coefficient is meant, so that what is wrong is said of that one."""
    if isinstance(value, LineOverLayers) or (isinstance(value, Mapping) and {*LINE} & {*value}):
        return "line"
    if isinstance(value, Mapping | ByModuleKind):
        return "kinds"
    if isinstance(value, list | tuple):
        return "rules" if any(isinstance(one, Mapping | Rule) for one in value) else "groups"
    return "number"


def _of_all_or_each(value: Any) -> str:
    return "each" if isinstance(value, Mapping) else "all"


OfSpecialist = Annotated[
    Annotated[Coefficient, Tag("number")]
    | Annotated[list[Coefficient], Field(min_length=1), Tag("groups")]
    | Annotated[LineOverLayers, Tag("line")]
    | Annotated[ByModuleKind, Tag("kinds")]
    | Annotated[CoefficientRules, Tag("rules")],
    Discriminator(_form),
]
"""λ of a specialist."""

OfTensors = Annotated[
    Annotated[Coefficient, Tag("number")]
    | Annotated[list[Coefficient], Field(min_length=1), Tag("groups")]
    | Annotated[LineOverLayers, Tag("line")]
    | Annotated[CoefficientRules, Tag("rules")],
    Discriminator(
        _form,
        custom_error_type="coefficient",
        custom_error_message="expected a number, a list of numbers by layer group, the ends of a line over the layers, "
        "or a list of {filter, value}",
    ),
]
"""A number for all specialists together, or what a tensor's name and layer make one of."""


def _keep_something(rules: list[Any]) -> list[Any]:
    if not any(_is_not_zero(rule.value) for rule in rules):
        raise ValueError("gives 0 everywhere, so nothing would be kept; leave the specialist out instead")
    return rules


def _is_not_zero(value: Any) -> bool:
    """Whether a rule's value, or one of its values over the layers, is not 0."""
    return any(value) if isinstance(value, list | tuple) else bool(value)


Share = Annotated[float, Field(gt=0, le=1)]
ShareRules = Annotated[
    list[Rule[Annotated[float, Field(ge=0, le=1)]]],
    Field(min_length=1),
    AfterValidator(_check_rules),
    AfterValidator(_keep_something),
]
Density = Annotated[
    Annotated[Share, Tag("all")]
    | Annotated[
        dict[
            str,
            Annotated[
                Annotated[Share, Tag("number")] | Annotated[ShareRules, Tag("rules")],
                Discriminator(
                    _form,
                    custom_error_type="density",
                    custom_error_message="expected a number above 0 and up to 1, or a list of {filter, value}",
                ),
            ],
        ],
        Tag("each"),
    ],
    Discriminator(_of_all_or_each),
]
"""Share that is kept: one, or one per specialist, which may be rules; what rules give 0 to is dropped."""

ScalingCoefficient = Annotated[
    Annotated[Coefficient, Tag("all")] | Annotated[dict[str, OfSpecialist], Tag("each")],
    Discriminator(_of_all_or_each),
]
"""λ: one number, one per specialist, or per specialist one per layer group, the ends of a line over the layers, any of
these for each kind of module, or rules by names of tensors."""


class MethodParameters(Strict):
    """Hyper-parameters of a method; unknown names are refused.

    A field listed in `per_specialist` may be one number or a mapping from specialist to number (or to what a tensor's
    name, layer and kind make a number of); `completed` writes it out for every specialist, and again as one number
    where it is listed in `one_if_alike` and is that. One listed in `over_layers` may be a number, or what a tensor's
    name and layer make a number of, for all specialists together. What has the value of `switched_off` is left out.
    `at_least` and `at_most` say how many specialists can be merged.
    """

    per_specialist: ClassVar[frozenset[str]] = frozenset()
    one_if_alike: ClassVar[frozenset[str]] = frozenset()
    over_layers: ClassVar[frozenset[str]] = frozenset()
    switched_off: ClassVar[Mapping[str, Any]] = {}
    at_least: ClassVar[int] = 1
    at_most: ClassVar[int | None] = None

    def completed(self, specialists: Sequence[str], layers: int) -> dict[str, Any]:
        """All hyper-parameters as plain JSON values, in one canonical form.

        Raises:
            ValueError: naming the parameter and the rule.
        """
        self._check_count(len(specialists))
        values = self.model_dump(mode="json")
        for name in sorted(self.per_specialist):
            values[name] = _expand(name, values[name], specialists, layers)
            if name in self.one_if_alike and _is_all(values[name], first := next(iter(values[name].values()))):
                values[name] = first
        for name in sorted(self.over_layers):
            _check_groups(name, values[name], layers)
            values[name] = _collapse(values[name])
        off = self.switched_off
        return {name: value for name, value in values.items() if name not in off or not _is_all(value, off[name])}

    @classmethod
    def as_many(cls, specialists: Sequence[str]) -> list[str]:
        """The first of these, as many as can be merged."""
        return list(specialists[: cls.at_most])

    def _check_count(self, count: int) -> None:
        least, most = self.at_least, self.at_most
        if count < least or (most is not None and count > most):
            wanted = f"exactly {least}" if least == most else f"at least {least}" if most is None else f"at most {most}"
            raise ValueError(f"merges {wanted} specialist{'s' * (wanted[-1] != '1')}, not {count}")


def _expand(name: str, value: Any, specialists: Sequence[str], layers: int) -> dict[str, Any]:
    """A value for each specialist; equal numbers become one number, so that equal merges are equal."""
    if not isinstance(value, dict):
        return dict.fromkeys(sorted(specialists), _collapse(value))
    if set(value) != set(specialists):
        odd = ", ".join(sorted(set(value) ^ set(specialists)))
        raise ValueError(
            f"{name} needs exactly the specialists {', '.join(sorted(specialists))}; wrong or missing: {odd}"
        )
    for specialist, number in value.items():
        for part in number.values() if isinstance(number, dict) else [number]:
            _check_groups(f"{name}.{specialist}", part, layers)
    return {specialist: _collapse(value[specialist]) for specialist in sorted(value)}


def _is_all(value: Any, wanted: Any) -> bool:
    """Whether a value, or that of each specialist, is this one."""
    return value == wanted or (isinstance(value, dict) and all(one == wanted for one in value.values()))


def _check_groups(name: str, value: Any, layers: int) -> None:
    """A number of a group without a layer would be ignored."""
    if _form(value) == "groups" and len(value) > max(layers, 1):
        raise ValueError(f"{name} has {len(value)} layer groups, but the model has {layers} layers")


def _collapse(value: Any) -> Any:
    """What is the same in all layers, in neighbouring groups of them, or for all kinds of modules, once."""
    if isinstance(value, dict):
        inside = {part: _collapse(one) for part, one in value.items()}
        first = next(iter(inside.values()))
        return first if all(one == first for one in inside.values()) else inside
    if _form(value) == "rules":
        return _collapse_rules(value)
    if isinstance(value, list):
        groups = next(count for count in range(1, len(value) + 1) if _falls_into(value, count))
        numbers = [_collapse(one) for one in value[:: len(value) // groups]]
        return numbers[0] if groups == 1 else numbers
    return value + 0.0 if isinstance(value, float) else value  # without a sign of zero


def _collapse_rules(rules: Sequence[Mapping[str, Any]]) -> Any:
    """Rules as few as say the same, or the number that they come to."""
    kept: list[dict[str, Any]] = []
    for rule in rules:
        value = rule["value"]
        value = [_collapse(one) for one in value] if isinstance(value, list) else _collapse(value)
        if isinstance(value, list) and all(one == value[0] for one in value):
            value = value[0]
        kept.append({"value": value} if rule.get("filter") is None else {"filter": rule["filter"], "value": value})
        if rule.get("filter") is None:
            break
    while len(kept) > 1 and kept[-2]["value"] == kept[-1]["value"]:
        del kept[-2]
    return kept if len(kept) > 1 or isinstance(kept[0]["value"], list) else kept[0]["value"]


def _falls_into(numbers: list[Any], groups: int) -> bool:
    """Whether so many groups of layers, each of several of these neighbours, have the same numbers."""
    each, rest = divmod(len(numbers), groups)
    return not rest and all(number == numbers[place - place % each] for place, number in enumerate(numbers))


@dataclass(frozen=True)
class TensorPlace:
    """Which tensor scalars are for.

    Attributes:
        name: name in the checkpoint.
        layer: index of its layer; None outside the layers (the final norm).
        num_layers: layers of the model.
        part: which run of 2**30 entries of the tensor; 0 but for huge tensors.
        kind: of the module that it is part of, as its family says.
    """

    name: str
    layer: int | None
    num_layers: int
    part: int = 0
    kind: ModuleKind = "mlp"


def layer_group(place: TensorPlace, groups: int) -> int:
    """Group of a tensor when the layers are cut into `groups` runs; tensors outside the layers join the last."""
    return groups - 1 if place.layer is None else place.layer * groups // place.num_layers


def per_specialist(values: Any, place: TensorPlace, specialists: Sequence[str]) -> list[float]:
    """One number per specialist for a tensor.

    Args:
        values: one number, or specialist -> number, or specialist -> one number per layer group, the line's ends,
            rules, or kind of module -> one of the others.
        place: the tensor.
        specialists: sorted names.
    """
    numbers = []
    for specialist in specialists:
        value = values[specialist] if isinstance(values, Mapping) else values
        numbers.append(_of_place(value, place))
    return numbers


def _of_place(value: Any, place: TensorPlace) -> float:
    form = _form(value)
    if form == "kinds":
        return _of_place(value[place.kind] if isinstance(value, Mapping) else getattr(value, place.kind), place)
    if form == "groups":
        return float(value[layer_group(place, len(value))])
    if form == "rules":
        return _by_rules(value, place)
    return _on_line(LineOverLayers.model_validate(value), place) if form == "line" else float(value)


def _on_line(line: LineOverLayers, place: TensorPlace) -> float:
    steps = place.num_layers - 1
    share = 1.0 if place.layer is None or not steps else place.layer / steps
    return line.first + share * (line.last - line.first)


def _by_rules(rules: Sequence[Rule[float] | Mapping[str, Any]], place: TensorPlace) -> float:
    for rule in rules:
        fitting, value = (rule.filter, rule.value) if isinstance(rule, Rule) else (rule.get("filter"), rule["value"])
        if fitting is None or fitting in place.name:
            return _on_gradient(value, place) if isinstance(value, list) else float(value)
    raise ValueError(f"no rule fits {place.name}")


def _on_gradient(numbers: Sequence[float], place: TensorPlace) -> float:
    """What lies on straight lines between numbers at equal distances, in the order of operations that mergekit has."""
    steps = place.num_layers - 1
    share = 0.0 if place.layer is None else place.layer / steps if steps else 1.0
    scaled = share * (len(numbers) - 1)
    first = int(scaled)
    rest = scaled - first
    return (1 - rest) * numbers[first] + rest * numbers[min(first + 1, len(numbers) - 1)]
