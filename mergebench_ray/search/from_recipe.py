"""A search that begins at a recipe, mergekit's or ours: its models and method, ranges around its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.config import ModelRef, Recipe, Suite, Sweep
from mergebench_ray.config.sweep import sweep_file
from mergebench_ray.config.yaml_files import read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.mergekit import ForeignMerge, is_mergekit, read_recipe
from mergebench_ray.methods import get_method, parse_parameters

_SEARCHED = (
    "scaling_coef",
    "weight",
    "base_weight",
    "t",
    "alpha",
    "beta",
    "density",
    "p",
    "select_topk",
    "reduction",
    "mu",
)
"""Hyper-parameters that are searched where they are plain numbers."""
_SHARES = {"density": 1.0, "p": 0.99, "select_topk": 1.0, "t": 1.0, "reduction": 1.0}
_LEAST, _MOST = -2.0, 3.0  # of coefficients
_WIDTH = 0.5  # ranges open by this part of a number to either side
_NARROWEST = 0.1
_SMALLEST_SHARE = 0.01


def sweep_from_recipe(
    recipe: Path | str, sweep: Path | str | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[Sweep, list[str]]:
    """The sweep that searches around a recipe.

    Args:
        recipe: the recipe's file.
        sweep: a sweep's file, or its name where it ships, which says the rest, such as the suite; what it says of
            methods, base, merged parts and first points counts instead of the recipe. Its specialists give names to
            the recipe's.
        overrides: dotted keys of the sweep and the values to use instead.

    Returns:
        the sweep, with the recipe's numbers as its first candidate, and notes on what of the recipe is left out.

    Raises:
        InputError: naming file, key and rule.
    """
    path = Path(recipe)
    merge, notes = _read(path)
    data = {} if sweep is None else read_yaml(sweep_file(sweep))
    where = f"--from {path}" if sweep is None else str(sweep)

    def fill_in(said: dict[str, Any]) -> dict[str, Any]:
        return _filled_in(said, merge, path, where)

    return Sweep.from_data(data, where, dict(overrides or {}), fill_in), notes


def _filled_in(said: dict[str, Any], merge: ForeignMerge, path: Path, where: str) -> dict[str, Any]:
    """What a sweep says, with what it leaves to the recipe."""
    if "suite" not in said:
        raise InputError(
            f"{where}: a search needs a suite to score candidates on; add --set suite=NAME, or a sweep's file"
        )
    named = _names(said, merge)
    specialists = {named.get(reference, name): reference for name, reference in merge.specialists.items()}
    if len(specialists) != len(merge.specialists):
        raise InputError(f"{where}: specialists: two models of {path} would have one name; give each its own")
    renamed = {name: named.get(reference, name) for name, reference in merge.specialists.items()}
    methods, point = _space(merge, renamed)
    filled = {
        "name": "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem).strip("._-") or "search",
        "base": merge.base,
        "methods": methods,
        "merged": merge.merged.model_dump(),
        **said,
        "specialists": specialists,
    }
    if "methods" not in said and point:
        search = said.get("search") or {}
        if isinstance(search, dict):
            filled["search"] = {"points_to_evaluate": [point], **search}
    return filled


def _read(path: Path) -> tuple[ForeignMerge, list[str]]:
    content = read_yaml(path)
    if is_mergekit(content):
        merge = read_recipe(content, path)
        if merge.layers is not None:
            raise InputError(f"{path}: slices: whether these are all layers is not looked at here; write models")
    else:
        own = Recipe.from_yaml(path, accept_changes=True)
        merge = ForeignMerge(
            *(own.method, own.parameters, own.base, dict(own.specialists), own.merged, own.dtype),
            *(own.tokenizer, own.chat_template),
        )
    beside = [
        f"{what} of {path} is left out: a search writes bfloat16, with what the base has beside its weights"
        for what, is_other in (
            (f"dtype {merge.dtype}", merge.dtype != "bfloat16"),
            ("the tokenizer", merge.tokenizer is not None),
            ("the chat template", merge.chat_template is not None),
        )
        if is_other
    ]
    return merge, [*merge.notes, *beside]


def _names(said: Mapping[str, Any], merge: ForeignMerge) -> dict[str, str]:
    """Reference -> the name that the sweep, or its suite, has for it."""
    suite = Suite.load(str(said["suite"]))
    given = said.get("specialists")
    known = [(name, str(one)) for name, one in (suite.specialists or {}).items()]
    if given is not None:
        if not isinstance(given, Mapping):
            raise InputError(f"specialists = {given!r:.80}: expected a mapping of domains to models")
        known = [(str(name), str(one)) for name, one in given.items()]
        ours = {str(ModelRef.parse(one)): name for name, one in merge.specialists.items()}
        for name, one in known:
            if str(ModelRef.parse(one)) not in ours:
                raise InputError(
                    f"specialists.{name}: {one:.200} is none of the recipe's models ({', '.join(ours):.300}); "
                    "leave it out"
                )
    return {str(ModelRef.parse(one)): name for name, one in known}


def _space(merge: ForeignMerge, renamed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ranges around the recipe's numbers, and the point that they are."""
    parameters = parse_parameters(merge.method, merge.parameters).model_dump(mode="json", exclude_unset=True)
    method = get_method(merge.method).Parameters
    parameters = {name: _renamed(value, renamed) for name, value in parameters.items()}
    if merge.method == "task_arithmetic":
        parameters = _apart(parameters)
    space: dict[str, Any] = {}
    point: dict[str, Any] = {}
    for name, value in parameters.items():
        numbers = _numbers(value)
        if name not in _SEARCHED or not numbers or (name == "density" and {*numbers} == {1.0}):
            space[name] = {"value": value}
            continue
        of_each = isinstance(value, Mapping)
        alike = of_each and len({*numbers}) == 1 and name == "scaling_coef" and "weight" in parameters
        space[name] = {**_range(name, numbers), **({"per": "specialist"} if of_each and not alike else {})}
        point[name] = numbers[0] if alike else value
    if not point and "scaling_coef" in method.model_fields and "scaling_coef" not in parameters:
        space["scaling_coef"], point["scaling_coef"] = _range("scaling_coef", [1.0]), 1.0
    return {merge.method: space}, point


def _apart(parameters: dict[str, Any]) -> dict[str, Any]:
    """Coefficients that differ between tensors as weights that stay, and what they are multiplied with."""
    scales = parameters.get("scaling_coef")
    if _numbers(scales) or "weight" in parameters or not isinstance(scales, Mapping):
        return parameters
    return {**parameters, "scaling_coef": dict.fromkeys(scales, 1.0), "weight": scales}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping) and {*value} <= {*names}:
        return {names[name]: one for name, one in value.items()}
    return value


def _numbers(value: Any) -> list[float]:
    """The numbers of a value that has one for all, or one for each specialist; else none."""
    values = [*value.values()] if isinstance(value, Mapping) else [value]
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    return [float(one) for one in values] if plain else []


def _range(name: str, numbers: list[float]) -> dict[str, float]:
    low, high = min(numbers), max(numbers)
    room = max(_NARROWEST, _WIDTH * max(abs(low), abs(high)))
    least, most = (_SMALLEST_SHARE, _SHARES[name]) if name in _SHARES else (_LEAST, _MOST)
    if name in ("t", "p", "reduction"):
        least = 0.0
    if low >= 0:
        least = max(least, 0.0)
    return {"low": round(max(low - room, least), 6), "high": round(min(high + room, most), 6)}
