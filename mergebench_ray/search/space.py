"""The search space of a sweep: from typed ranges to what Optuna suggests, and back to a method's hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergebench_ray.config import Choices, Fixed, Range, Sweep
from mergebench_ray.config.names import require_names
from mergebench_ray.errors import InputError
from mergebench_ray.methods import complete_parameters

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Path = tuple[str | int, ...]
"""Where a number stands in a specialist's coefficient."""

METHOD = "method"
OPTUNA_NUMBER = "optuna_number"
_INSIDE = 0.381966  # where between the bounds a value is tried that no method takes for a whole number by chance
_MOST_LAYERS = 1000
_MOST_NUMBERS = 10_000


class Space:
    """All candidates that a sweep may try.

    A searched number is named ``METHOD.PARAMETER`` or ``METHOD.PARAMETER.SPECIALIST``, and behind that, as far as there
    are such, a kind of module and a layer group or, of a line, ``first`` or ``last``; with several methods, ``method``
    chooses among them first (define-by-run, so only the chosen method's numbers exist in a trial).

    Args:
        sweep: the checked sweep file.
        specialists: names of the specialists.
        layers: number of the model's layers, to check layer groups; None while the model is not known.

    Raises:
        InputError: unknown method or hyper-parameter, a bound that the method does not accept, or nothing to search.
    """

    def __init__(self, sweep: Sweep, specialists: Sequence[str], layers: int | None) -> None:
        require_names(specialists, "specialist")
        self._methods = sweep.methods
        self._specialists = sorted(specialists)
        self._layers = _MOST_LAYERS if layers is None else layers
        self._check(sweep)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Define-by-run: ask `trial` for every number of one candidate; returns what the method needs besides."""
        names = list(self._methods)
        method = trial.suggest_categorical(METHOD, names) if len(names) > 1 else names[0]
        for key, parameter, _ in self._searched(method):
            if isinstance(parameter, Choices):
                trial.suggest_categorical(key, parameter.choices)
                continue
            low, high = parameter.widest
            if parameter.integer:
                trial.suggest_int(key, int(low), int(high), log=parameter.log)
            else:
                trial.suggest_float(key, low, high, log=parameter.log)
        return {METHOD: method, OPTUNA_NUMBER: trial.number}

    @property
    def methods(self) -> list[str]:
        """The methods that may be tried."""
        return list(self._methods)

    def distributions(self, method: str) -> dict[str, BaseDistribution]:
        """What the searched numbers of a method may be, as `suggest` asks for them."""
        return {key: _distribution(parameter) for key, parameter, _ in self._searched(method)}

    @property
    def beginnings(self) -> dict[str, BaseDistribution]:
        """Of the numbers whose ranges may grow, of all methods, the ranges that they begin with."""
        return {
            key: _distribution(parameter.model_copy(update={"grow_to": None}))
            for method in self._methods
            for key, parameter, _ in self._searched(method)
            if isinstance(parameter, Range) and parameter.grow_to is not None
        }

    def candidate(self, suggestion: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Method and hyper-parameters of a suggestion (as `suggest` filled it)."""
        method = suggestion[METHOD] if METHOD in suggestion else next(iter(self._methods))
        parameters: dict[str, Any] = {}
        for name, parameter in self._methods[method].items():
            if isinstance(parameter, Fixed):
                parameters[name] = parameter.value
            elif isinstance(parameter, Range) and parameter.per == "specialist":
                parameters[name] = {
                    specialist: _collect(suggestion, f"{method}.{name}.{specialist}", parameter.paths)
                    for specialist in self._specialists
                }
            else:
                parameters[name] = suggestion[f"{method}.{name}"]
        return method, parameters

    def corners(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Method and hyper-parameters with every bound and every choice at least once."""
        for method in self._methods:
            yield from ((method, parameters) for parameters in self._corners(method))

    def points(self, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Candidates written as in the sweep file, as suggestions that Optuna can enqueue.

        Raises:
            InputError: naming the point and key, if one is not inside the space.
        """
        return [self._point(point, f"search.points_to_evaluate.{index}") for index, point in enumerate(points)]

    def _point(self, point: Mapping[str, Any], where: str) -> dict[str, Any]:
        method = point.get(METHOD, next(iter(self._methods)))
        if not isinstance(method, str) or method not in self._methods:
            raise InputError(
                f"{where}.method = {method!r:.80}: not one of this sweep's methods ({', '.join(self._methods)})"
            )
        suggestion: dict[str, Any] = {METHOD: method} if len(self._methods) > 1 else {}
        parameters = self._methods[method]
        if unknown := sorted(set(point) - {METHOD} - set(parameters)):
            raise InputError(
                f"{where}: unknown key {unknown[0]!r:.80}; searched of {method} are {', '.join(parameters) or 'none'}"
            )
        for name, value in point.items():
            if name != METHOD:
                self._check_shape(value, parameters[name], f"{where}.{name}")
        for key, parameter, (first, *path) in self._searched(method):
            name = str(first)
            if name not in point:
                raise InputError(f"{where}: {name!r} of {method} is missing; give every searched value")
            suggestion[key] = _inside(_descend(point[name], path), parameter, f"{where}.{name}")
        return suggestion

    def _check_shape(self, value: Any, parameter: Range | Choices | Fixed, where: str) -> None:
        """Refuse what `_descend` would not look at."""
        if isinstance(parameter, Fixed):
            if value != parameter.value:
                raise InputError(
                    f"{where} = {value!r:.80}: the sweep fixes it at {parameter.value!r:.80}; leave it out"
                )
            return
        each = isinstance(parameter, Range) and parameter.per == "specialist"
        if isinstance(value, Mapping):
            if not each:
                raise InputError(f"{where} = {value!r:.80}: one number for all is searched; give a number")
            if wrong := sorted(set(value) ^ set(self._specialists)):
                raise InputError(
                    f"{where} needs exactly the specialists {', '.join(self._specialists)}; wrong or missing: "
                    f"{', '.join(wrong):.200}"
                )
        paths = parameter.paths if each and isinstance(parameter, Range) else ((),)
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if not _fits(one, paths):
                raise InputError(f"{where} = {one!r:.80}: {_needed(paths)} is needed")

    def _searched(self, method: str) -> Iterator[tuple[str, Range | Choices, tuple[str | int, ...]]]:
        """Searched numbers of a method: key, what it may be, and where it stands in a point."""
        for name, parameter in self._methods[method].items():
            key = f"{method}.{name}"
            if isinstance(parameter, Range) and parameter.per == "specialist":
                for specialist in self._specialists:
                    for path in parameter.paths:
                        yield ".".join((key, specialist, *map(str, path))), parameter, (name, specialist, *path)
            elif not isinstance(parameter, Fixed):
                yield key, parameter, (name,)

    @property
    def num_numbers(self) -> int:
        """How many numbers and choices are searched, of all methods together."""
        return sum(
            len(self._specialists) * len(one.paths) if isinstance(one, Range) and one.per == "specialist" else 1
            for parameters in self._methods.values()
            for one in parameters.values()
            if not isinstance(one, Fixed)
        )

    def _check(self, sweep: Sweep) -> None:
        if self.num_numbers > _MOST_NUMBERS:
            raise InputError(
                f"sweep {sweep.name}: {self.num_numbers} numbers to search, more than {_MOST_NUMBERS}; take fewer "
                "layer_groups"
            )
        for method, corner in self.corners():
            try:
                complete_parameters(method, corner, self._specialists, self._layers)
            except InputError as error:
                raise InputError(f"sweep {sweep.name}, methods.{method}: {error}") from error
        if self.num_numbers == 0 and len(self._methods) == 1:
            raise InputError(
                f"sweep {sweep.name}: nothing to search in 'methods'; give a hyper-parameter {{low, high}} or "
                "{choices}, or name more than one method"
            )
        self.points(sweep.search.points_to_evaluate)

    def _corners(self, method: str) -> Iterator[dict[str, Any]]:
        """If these are valid, so is everything between them."""
        options = {name: _extremes(parameter) for name, parameter in self._methods[method].items()}
        for index in range(max((len(values) for values in options.values()), default=1)):
            suggestion = {METHOD: method}
            for key, _, (name, *_) in self._searched(method):
                values = options[str(name)]
                suggestion[key] = values[min(index, len(values) - 1)]
            yield self.candidate(suggestion)[1]


def _distribution(parameter: Range | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choices):
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.widest
    if parameter.integer:
        return IntDistribution(int(low), int(high), log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log)


def _extremes(parameter: Range | Choices | Fixed) -> list[Any]:
    """Values between which all others are accepted if these are; a range without `integer` gives broken numbers."""
    if isinstance(parameter, Range):
        low, high = parameter.widest
        return [int(low), int(high)] if parameter.integer else [low, high, low + (high - low) * _INSIDE]
    return list(parameter.choices) if isinstance(parameter, Choices) else [parameter.value]


def _collect(suggestion: Mapping[str, Any], key: str, paths: Sequence[Path]) -> Any:
    """A specialist's number, or its numbers by kind of module, layer group or end of a line."""
    if () in paths:
        return suggestion[key]
    inside = {first: _collect(suggestion, f"{key}.{first}", rest) for first, rest in _branches(paths).items()}
    return inside if _are_names(inside) else [*inside.values()]


def _branches(paths: Sequence[Path]) -> dict[str | int, list[Path]]:
    """First steps of paths, each with what follows it; none of the empty path."""
    found: dict[str | int, list[Path]] = {}
    for first, *rest in filter(None, paths):
        found.setdefault(first, []).append(tuple(rest))
    return found


def _are_names(steps: Iterable[str | int]) -> bool:
    return all(isinstance(step, str) for step in steps)


def _fits(value: Any, paths: Sequence[Path]) -> bool:
    """Whether a value in a point is one for all paths, or has one for each of their first steps."""
    if not isinstance(value, Mapping | list):
        return True
    branches = _branches(paths)
    if isinstance(value, Mapping):
        return set(value) == set(branches) and all(_fits(value[step], rest) for step, rest in branches.items())
    is_list = not _are_names(branches) and len(value) == len(branches)
    return is_list and all(map(_fits, value, branches.values()))  # in the order of the paths


def _needed(paths: Sequence[Path]) -> str:
    """What a point may say of a specialist."""
    steps = [*_branches(paths)]
    if not steps:
        return "a number"
    if not _are_names(steps):
        return f"a list of {len(steps)}"
    return f"a number, or {{{': ..., '.join(map(str, steps))}: ...}}"


def _descend(value: Any, path: Sequence[str | int]) -> Any:
    """The number for a specialist and layer group, or end of a line; a single number stands for all of them."""
    for part in path:
        by_specialist = isinstance(part, str) and isinstance(value, Mapping)
        by_group = isinstance(part, int) and isinstance(value, list)
        value = value[part] if by_specialist or by_group else value
    return value


def _inside(value: Any, parameter: Range | Choices, where: str) -> Any:
    if isinstance(parameter, Choices):
        for choice in parameter.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise InputError(f"{where} = {value!r:.80}: not one of {parameter.choices!r:.200}")
    low, high = parameter.widest
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where} = {value!r:.80}: outside the searched range {low} to {high}")
    if parameter.integer and value != int(value):
        raise InputError(f"{where} = {value!r}: whole numbers are searched")
    return int(value) if parameter.integer else value
