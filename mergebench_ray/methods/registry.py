"""Finding methods by name, and completing the hyper-parameters that a user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.extensions import import_extensions
from mergebench_ray.installed_code import sources_of
from mergebench_ray.methods.method import Method
from mergebench_ray.methods.parameters import MethodParameters
from mergebench_ray.outside_code import code_of, is_outside

MethodT = TypeVar("MethodT", bound=type[Method])

ENTRY_POINTS = "mergebench_ray.methods"
"""Group of entry points by which other packages bring methods: modules, or classes, that `register` theirs."""

_OURS = __name__.partition(".")[0]

_methods: dict[str, Method] = {}
_of_files: dict[str, dict[str, Method]] = {}


def register(method: MethodT) -> MethodT:
    """Make a method class known under its name; one in a user's file is known once its folder is asked for.

    Raises:
        ValueError: if the name is taken by another class.
    """
    if is_outside(method.__module__):
        _of_files.setdefault(method.__module__, {})[method.name] = method()
        return method
    known = _methods.get(method.name)
    if known is not None and (type(known).__module__, type(known).__qualname__) != (
        method.__module__,
        method.__qualname__,
    ):
        raise ValueError(f"method {method.name!r} is registered twice: {type(known)} and {method}")
    _methods[method.name] = method()
    return method


@cache
def _scan() -> None:
    assert __package__ is not None
    import_extensions(__package__, ENTRY_POINTS)


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    _scan()
    return sorted(_methods)


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: naming the closest known method.
    """
    _scan()
    if name not in _methods:
        raise InputError(f"unknown method {name!r}; {nearest(name, _methods)}")
    return _methods[name]


def method_source(name: str) -> str | None:
    """SHA-256 of the code of a method that another package or a user's file brings; None for those that are here.

    Of a file it is the file's, of a package that of all files beside the method's.

    Raises:
        InputError: naming the closest known method.
    """
    kind = type(get_method(name))
    if kind.__module__.partition(".")[0] == _OURS:
        return None
    code = code_of(kind)
    return sources_of([kind]) if code is None else code.digest


def installed_methods() -> dict[str, str]:
    """Where methods come from that are there whatever folder is asked for, by name."""
    _scan()
    kinds = {name: type(method) for name, method in _methods.items()}
    return {name: kind.__module__ for name, kind in kinds.items() if not is_outside(kind.__module__)}


def methods_in(module: str) -> dict[str, Method]:
    """What the module of a user's file has registered, by name."""
    return _of_files.get(module, {})


def forget_methods(names: Iterable[str]) -> None:
    """Make methods of users' files unknown."""
    for name in names:
        _methods.pop(name, None)


def add_methods(methods: Mapping[str, Method]) -> None:
    """Make methods of users' files known."""
    _methods.update(methods)


def parse_parameters(method: str, parameters: Mapping[str, Any]) -> MethodParameters:
    """The hyper-parameters of a method as its typed model.

    Raises:
        InputError: naming key, value and rule.
    """
    return parse_model(get_method(method).Parameters, dict(parameters), method)


def complete_parameters(
    method: str, parameters: Mapping[str, Any], specialists: Sequence[str], layers: int
) -> dict[str, Any]:
    """Check hyper-parameters, fill in defaults and write per-specialist values out.

    Args:
        method: name of the method.
        parameters: what the user gave.
        specialists: names of the specialists.
        layers: number of layers of the model; no list of layer groups may be longer.

    Returns:
        plain JSON values, the same for equal merges, fit for a `Recipe`.

    Raises:
        InputError: naming method, key, value and rule.
    """
    parsed = parse_parameters(method, parameters)
    try:
        return parsed.completed(specialists, layers)
    except ValueError as error:
        raise InputError(f"{method}: {error}") from error
