"""Parameters of a mergekit recipe: numbers, gradients and filters, of a model and of the whole, as rules of ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from mergebench_ray.errors import InputError

Value = float | list[dict[str, Any]]
"""A number for all tensors, or rules: [{filter: part of a name, value: number or gradient}, ..., {value: ...}]."""

_NUMBER: TypeAdapter[float] = TypeAdapter(float)
_FLAG: TypeAdapter[bool] = TypeAdapter(bool)


class Scope(NamedTuple):
    """Where parameters stand.

    Attributes:
        where: for messages.
        values: by name.
    """

    where: str
    values: Mapping[str, Any]


class MissingError(Exception):
    """A parameter has no value, for all tensors or for some."""


def value_of(name: str, scopes: Iterable[Scope], default: float | None = None) -> Value:
    """What a parameter is in each tensor: the first scope says that has a value for it.

    Args:
        name: of the parameter.
        scopes: the one that counts most first.
        default: where no scope says anything.

    Raises:
        InputError: naming what is no number.
        MissingError: tensors for which nothing is said, and no default.
    """
    rules: list[dict[str, Any]] = []
    for scope in scopes:
        for rule in _rules(scope.values.get(name), f"{scope.where}.{name}"):
            rules.append(rule)
            if "filter" not in rule:
                return _simplest(rules)
    if default is None:
        raise MissingError(f"{name} has no value" + (" where no filter fits" if rules else ""))
    return _simplest([*rules, {"value": default}])


def flag_of(name: str, scope: Scope, default: bool) -> bool:
    """A parameter that is true or false, for all tensors.

    Raises:
        InputError: naming what it is otherwise.
    """
    value = scope.values.get(name)
    if value is None:
        return default
    try:
        flag = _FLAG.validate_python(value)
    except ValidationError:
        raise InputError(f"{scope.where}.{name} = {value!r:.80}: expected true or false, for all tensors") from None
    return flag


def scaled(factor: float, value: Value) -> Value:
    """All numbers of a value times another."""
    if not isinstance(value, list):
        return factor * value
    return [rule | {"value": _times(factor, rule["value"])} for rule in value]


def largest(value: Value) -> float:
    """The largest magnitude that a value comes to in any tensor."""
    return max(map(abs, _all_numbers(value)))


def smallest(value: Value) -> float:
    """The smallest number that a value comes to in any tensor."""
    return min(_all_numbers(value))


def _all_numbers(value: Value) -> list[float]:
    parts = [rule["value"] for rule in value] if isinstance(value, list) else [value]
    return [float(one) for part in parts for one in (part if isinstance(part, list) else [part])]


def _times(factor: float, value: float | list[float]) -> float | list[float]:
    return [factor * one for one in value] if isinstance(value, list) else factor * value


def _rules(setting: Any, where: str) -> list[dict[str, Any]]:
    if setting is None or setting == []:
        return []
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return [{"value": _number(setting, where)}]
    if not any(isinstance(one, Mapping) for one in setting):
        return [{"value": [_number(one, where) for one in setting]}]
    return [_rule(one, f"{where}.{index}") for index, one in enumerate(setting)]


def _rule(setting: Any, where: str) -> dict[str, Any]:
    if not isinstance(setting, Mapping) or setting.get("value") in (None, []) or {*setting} - {"filter", "value"}:
        raise InputError(f"{where} = {setting!r:.80}: expected {{filter: PART OF A NAME, value: NUMBER}}")
    fits, given = setting.get("filter"), setting["value"]
    if fits is not None and not isinstance(fits, str):
        raise InputError(f"{where}.filter = {fits!r:.80}: expected a part of tensors' names")
    value = [_number(one, where) for one in given] if isinstance(given, list) else _number(given, where)
    return {"value": value} if fits in (None, "", "*") else {"filter": fits, "value": value}


def _number(value: Any, where: str) -> float:
    try:
        number = float(_NUMBER.validate_python(value))
    except ValidationError:
        raise InputError(f"{where} = {value!r:.80}: expected a number") from None
    if not math.isfinite(number):
        raise InputError(f"{where} = {value!r:.80}: expected a finite number")
    return number


def _simplest(rules: Sequence[dict[str, Any]]) -> Value:
    """A number, where all rules come to it."""
    numbers = _all_numbers(list(rules))
    return numbers[0] if all(one == numbers[0] for one in numbers) else list(rules)
