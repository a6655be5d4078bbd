"""From a recipe of ours to one of mergekit's, where mergekit can say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergebench_ray.config import ModelRef, Recipe
from mergebench_ray.config.reference import HUB_SCHEME
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.methods import TensorPlace, per_specialist

FILE_NAME = "mergekit_config.yml"
"""As mergekit calls its own."""

_MASKS = "mergekit would draw other random masks"
_WEIGHTS = "mergekit merges embeddings and output head, too, and this method has no weights to leave them out by"
_NO_METHOD = "mergekit has no such method"


class CannotSayError(Exception):
    """Why mergekit cannot say the same, as the end of a sentence."""


@dataclass(frozen=True)
class _Merge:
    """What a recipe of mergekit's says beside the models.

    Attributes:
        method: mergekit's.
        whole: parameters of the merge.
        each: parameters of each specialist, by name of the parameter: specialist -> value in our form.
        unmerged: what a parameter of `each` is in tensors that are the base's, by its name; none where all are merged.
        of_base: the same parameters of the base, where that is one of the models: value, and in tensors of the base's.
        has_base: whether there is a base_model.
    """

    method: str
    whole: Mapping[str, Any]
    each: Mapping[str, Mapping[str, Any]]
    unmerged: Mapping[str, float]
    of_base: Mapping[str, tuple[Any, float]] | None = None
    has_base: bool = True


_Translate = Callable[[Recipe, Sequence[TensorPlace]], _Merge]


def mergekit_recipe(recipe: Recipe, merged: Sequence[TensorPlace], unmerged: Sequence[str]) -> str:
    """A recipe for mergekit-yaml that means the same, as YAML.

    Args:
        recipe: the recipe.
        merged: the tensors that it merges.
        unmerged: names of floating-point tensors that are the base's.

    Raises:
        CannotSayError: there is none.
    """
    if recipe.method not in _KINDS:
        raise CannotSayError(_NO_METHOD)
    found = _KINDS[recipe.method](recipe, merged)
    if unmerged and not found.unmerged:
        raise CannotSayError(_WEIGHTS)

    def setting(value: Any, of_the_base: float | None) -> Any:
        return _setting(value, merged, unmerged if of_the_base is not None else (), of_the_base)

    names = sorted(recipe.specialists)
    entries: list[dict[str, Any]] = []
    if found.of_base is not None:
        parameters = {name: setting(value, other) for name, (value, other) in found.of_base.items()}
        entries.append({"model": _reference(recipe.base), "parameters": parameters})
    for one in names:
        own = {name: setting(values[one], found.unmerged.get(name)) for name, values in found.each.items()}
        entries.append({"model": _reference(recipe.specialists[one]), **({"parameters": own} if own else {})})
    whole = {name: setting(value, found.unmerged.get(name)) for name, value in found.whole.items()}
    document: dict[str, Any] = {"models": entries, "merge_method": found.method}
    if found.has_base:
        document["base_model"] = _reference(recipe.base)
    if whole:
        document["parameters"] = whole
    document |= {"dtype": "float32", "out_dtype": recipe.dtype}
    if recipe.tokenizer is not None:
        document["tokenizer_source"] = _reference(recipe.specialists[recipe.tokenizer])
    if recipe.chat_template is not None:
        document["chat_template"] = recipe.chat_template
    return to_yaml(document)


def _reference(text: str) -> str:
    parsed = ModelRef.parse(text)
    for part in (parsed, parsed.adapter):
        if part is not None and ("://" in part.source.removeprefix(HUB_SCHEME) or _is_no_folder(part.source)):
            raise CannotSayError(f"mergekit does not read {part.source}")
    return str(parsed).replace(HUB_SCHEME, "")


def _is_no_folder(source: str) -> bool:
    return source.startswith("package:") or source.endswith(".gguf")


def _setting(value: Any, merged: Sequence[TensorPlace], unmerged: Sequence[str], of_the_base: float | None) -> Any:
    """A value of ours as mergekit writes it: a number, a gradient, or a list of filters."""
    if isinstance(value, bool | int) or not isinstance(value, float | list | Mapping):
        return value
    rules = _rules(value, merged)
    first = [{"filter": name, "value": of_the_base} for name in unmerged]
    if not first and len(rules) == 1:
        return rules[0]["value"]
    rules = first + rules
    for place in merged:
        if _number(rules, place) != _number(value, place):
            raise CannotSayError(f"mergekit's filters cannot tell {place.name} from other tensors")
    return rules


def _rules(value: Any, merged: Sequence[TensorPlace]) -> list[dict[str, Any]]:
    if not isinstance(value, list | Mapping):
        return [{"value": value}]
    if isinstance(value, list) and isinstance(value[0], Mapping):
        return [dict(rule) for rule in value]
    numbers = {place.name: _number(value, place) for place in merged}
    return _as_rules(numbers, merged)


def _number(value: Any, place: TensorPlace) -> float:
    return per_specialist({"": value}, place, [""])[0]


def _as_rules(numbers: Mapping[str, float], merged: Sequence[TensorPlace]) -> list[dict[str, Any]]:
    """Numbers of tensors as few rules: outside the layers by name, inside by what follows the layer's number."""
    inside: dict[str, dict[int, float]] = {}
    for place in merged:
        if place.layer is not None:
            inside.setdefault(place.name.split(f".{place.layer}.", 1)[-1], {})[place.layer] = numbers[place.name]
    layers = merged[0].num_layers
    gradients: dict[str, Any] = {}
    for suffix, of_layers in inside.items():
        some = next(iter(of_layers.values()))
        gradient = tuple(of_layers.get(layer, some) for layer in range(layers))
        gradients[suffix] = gradient if len({*gradient}) > 1 else gradient[0]
    outside = {place.name: numbers[place.name] for place in merged if place.layer is None}
    usual = Counter([*gradients.values()] or [*outside.values()]).most_common(1)[0][0]
    start = usual[0] if isinstance(usual, tuple) else usual
    rules = [{"filter": name, "value": number} for name, number in outside.items() if number != start]
    longest = sorted(gradients, key=lambda suffix: (-len(suffix), suffix))
    rules += [
        {"filter": suffix, "value": _plain(gradients[suffix])} for suffix in longest if gradients[suffix] != usual
    ]
    return [*rules, {"value": _plain(usual)}]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _model_soup(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    weights = dict.fromkeys(recipe.specialists, 1.0)
    return _Merge("linear", {"normalize": True}, {"weight": weights}, {"weight": 0.0}, {"weight": (0.0, 1.0)})


def _linear(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    base = {"weight": (given["base_weight"], 1.0)}
    return _Merge("linear", {"normalize": given["normalize"]}, {"weight": given["weight"]}, {"weight": 0.0}, base)


def _task_arithmetic(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    scales = given["scaling_coef"]
    if "weight" not in given and not given.get("normalize"):
        return _weighted("task_arithmetic", {"weight": scales}, {"normalize": False})
    weights = given.get("weight", dict.fromkeys(scales, 1.0))
    whole = {"normalize": given.get("normalize", False), "lambda": _same(scales)}
    return _weighted("task_arithmetic", {"weight": weights}, whole)


def _lines(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    from mergebench_ray.methods import get_method, parse_parameters

    method, parameters = get_method("lines"), parse_parameters("lines", given)
    names = sorted(given["alpha"])
    numbers = {place.name: method.scalars(parameters, None, place, names)["coefficient"] for place in merged}
    weights = {one: _as_rules({name: some[k] for name, some in numbers.items()}, merged) for k, one in enumerate(names)}
    return _weighted("task_arithmetic", {"weight": weights}, {"normalize": False})


def _ties(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    if given.get("trim", "global") != "tensor":
        raise CannotSayError("mergekit trims each tensor by itself, this recipe whole task vectors")
    if given["merge_func"] == "max":
        raise CannotSayError("mergekit has no merge_func: max")
    scales = given["scaling_coef"]
    density = given["density"] if isinstance(given["density"], Mapping) else dict.fromkeys(scales, given["density"])
    each = {"weight": given.get("weight", dict.fromkeys(scales, 1.0)), "density": density}
    whole = {"normalize": given["merge_func"] == "mean", "rescale": given.get("rescale", False)}
    return _weighted("ties", each, {**whole, "lambda": _same(scales)})


def _sparse(name: str) -> _Translate:
    def translate(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
        given = recipe.parameters
        drops = any(one != 1 for one in given["density"].values())
        if "seed" in given and drops:
            raise CannotSayError(_MASKS)
        each = {"weight": given["weight"], "density": given["density"]}
        if "gamma" in given:
            gamma = given["gamma"]
            each["gamma"] = gamma if isinstance(gamma, Mapping) else dict.fromkeys(given["weight"], gamma)
        whole = {name: given[name] for name in ("normalize", "rescale")}
        return _weighted(name, each, {**whole, "lambda": given["scaling_coef"]})

    return translate


def _dare(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    if given["p"]:
        raise CannotSayError(_MASKS)
    return _weighted("task_arithmetic", {"weight": given["scaling_coef"]}, {"normalize": False})


def _weighted(method: str, each: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> _Merge:
    """With a weight of 0 a specialist leaves a tensor as the base has it."""
    return _Merge(method, whole, each, {"weight": 0.0})


def _same(values: Mapping[str, Any]) -> Any:
    first = next(iter(values.values()))
    if any(one != first for one in values.values()):
        raise CannotSayError("mergekit has one lambda for all models, this recipe one for each")
    return first


def _sce(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    if given["alike_below"] != 1e-6 or given["scaling_coef"] != 1:
        raise CannotSayError("mergekit's sce has alike_below: 1e-6 and scaling_coef: 1.0")
    return _Merge("sce", {"select_topk": given["select_topk"]}, {}, {})


def _ram(name: str) -> _Translate:
    return lambda recipe, merged: _Merge(name, recipe.parameters, {}, {})


def _slerp(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    return _Merge("slerp", {"t": _same(given["t"])}, {}, {"t": 0.0})


def _nuslerp(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    return _Merge("nuslerp", {}, {"weight": given["weight"]}, {}, has_base=given["around"] == "base")


def _multislerp(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    whole = {"normalize_weights": given["normalize"]}
    return _Merge("multislerp", whole, {"weight": given["weight"]}, {}, has_base=given["around"] == "base")


def _karcher(recipe: Recipe, merged: Sequence[TensorPlace]) -> _Merge:
    given = recipe.parameters
    if given["around"] != "zero" or len({*given["weight"].values()}) > 1:
        raise CannotSayError("mergekit's karcher is around zero and weighs all models alike")
    return _Merge("karcher", {"max_iter": given["steps"], "tol": given["tolerance"]}, {}, {}, has_base=False)


_KINDS: dict[str, _Translate] = {
    "model_soup": _model_soup,
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "lines": _lines,
    "ties": _ties,
    "dare": _dare,
    **{name: _sparse(name) for name in ("dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties")},
    **{name: _sparse(name) for name in ("della", "della_linear")},
    "sce": _sce,
    "ram": _ram("ram"),
    "ram_plus": _ram("ramplus_tl"),
    "model_stock": _ram("model_stock"),
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
}
