"""From a mergekit recipe to a merge of ours that means the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mergebench_ray.config import MergedParts, ModelRef
from mergebench_ray.config.names import check_name
from mergebench_ray.config.recipe import WeightType
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.mergekit.document import Document, read_document
from mergebench_ray.mergekit.settings import MissingError, Scope, Value, flag_of, largest, scaled, smallest, value_of

_PARTS = MergedParts(embeddings=True)  # mergekit merges everything
_LEAST_WEIGHT, _MOST_WEIGHT = -2.0, 3.0  # of ours


@dataclass(frozen=True)
class ForeignMerge:
    """What a mergekit recipe asks for, in our words.

    Attributes:
        method: our method.
        parameters: its hyper-parameters, not completed.
        base: reference of the base.
        specialists: name, made of the reference -> reference.
        merged: which parts are merged.
        dtype: what is written.
        tokenizer: name of the specialist whose tokenizer is taken; None for the base's.
        chat_template: its text or name; None for the tokenizer's.
        layers: how many layers the models must have; None for any number.
        notes: what is done otherwise, or passed over, a line each.
    """

    method: str
    parameters: dict[str, Any]
    base: str
    specialists: dict[str, str]
    merged: MergedParts = _PARTS
    dtype: WeightType = "bfloat16"
    tokenizer: str | None = None
    chat_template: str | None = None
    layers: int | None = None
    notes: list[str] = field(default_factory=list)


def read_recipe(content: Mapping[str, Any], path: Path) -> ForeignMerge:
    """The merge that the content of a mergekit recipe asks for.

    Raises:
        InputError: naming file, key and rule.
    """
    document = read_document(content, path)
    if document.method in _REFUSED:
        raise InputError(f"{document.where}: merge_method {document.method}: {_REFUSED[document.method]}")
    if document.method not in _KINDS:
        raise InputError(
            f"{document.where}: unknown merge_method {document.method!r:.80}; {nearest(document.method, _KINDS)}"
        )
    kind = _KINDS[document.method]
    base, others = _roles(document, kind)
    specialists = _named(others)
    said = _Said(document, kind, base, specialists)
    parameters = kind.translate(said)
    tokenizer = None
    if document.tokenizer not in (None, base):
        tokenizer = next((name for name, one in specialists.items() if one == document.tokenizer), None)
        if tokenizer is None:
            raise InputError(f"{document.where}: tokenizer: {document.tokenizer} is none of the recipe's models")
    return ForeignMerge(
        kind.method,
        parameters,
        base,
        specialists,
        dtype=document.dtype or "bfloat16",
        tokenizer=tokenizer,
        chat_template=document.chat_template,
        layers=document.layers,
        notes=[*document.notes, *said.notes],
    )


def _roles(document: Document, kind: _Kind) -> tuple[str, list[str]]:
    """Our base, and our specialists."""
    where, inputs = f"{document.where}: {document.method}", document.inputs
    if kind.needs_base and document.base is None:
        raise InputError(f"{where} needs a base_model; add it")
    if kind.is_around_zero(document):
        # Lengths and angles are those of the models themselves, so any of them may be our base.
        return document.base or inputs[0], inputs
    base = document.base or inputs[0]
    others = [one for one in inputs if one != base]
    if not others:
        raise InputError(f"{where}: there is nothing to merge into {base}; give more models")
    if kind.only_one and len(others) > 1:
        raise InputError(f"{where} merges two models, the base_model among them, not {len(inputs)}")
    return base, others


def _named(references: Sequence[str]) -> dict[str, str]:
    """A name for each reference: the end of it, with a number where that is taken."""
    named: dict[str, str] = {}
    for reference in references:
        parsed = ModelRef.parse(reference)
        ends = [PurePath(part.source).name for part in (parsed, parsed.adapter) if part is not None]
        stem = "".join(c if c.isalnum() or c in "._- " else "-" for c in ends[-1].removesuffix(".gguf")).strip("._- ")
        stem = stem[:80] or "model"
        names = [stem, *(f"{stem}-{number}" for number in range(2, len(references) + 3))]
        named[next(name for name in names if name not in named and _is_free(name))] = reference
    return named


def _is_free(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


class _Said:
    """What a recipe says of a method's parameters; asking for one is using it.

    Attributes:
        notes: what was passed over.
    """

    def __init__(self, document: Document, kind: _Kind, base: str, specialists: Mapping[str, str]) -> None:
        self.where = document.where
        self.notes: list[str] = []
        self.method = document.method
        self._document = document
        self._base = base
        self._specialists = specialists
        self._whole = Scope(f"{document.where}: parameters", document.parameters)
        self._check_names(kind)

    @property
    def is_around_zero(self) -> bool:
        """Whether there is no base to take task vectors from."""
        return self._document.base is None

    @property
    def names(self) -> list[str]:
        """Of the specialists."""
        return [*self._specialists]

    def each(self, name: str, default: float | None = None) -> dict[str, Value]:
        """Of each specialist, in each tensor."""
        return {one: self._of(reference, name, default) for one, reference in self._specialists.items()}

    def of_base(self, name: str) -> Value:
        """Of the base, in each tensor; 0 where it is not among the models."""
        return self._of(self._base, name, None)

    def whole(self, name: str, default: float | None = None) -> Value:
        """Of the merge, in each tensor."""
        return self._value(name, [self._whole], default)

    def number(self, name: str, default: float) -> float:
        """Of the merge, the same in all tensors."""
        value = self.whole(name, default)
        if isinstance(value, list):
            raise InputError(f"{self._whole.where}.{name}: must be one number for all tensors here; give that")
        return value

    def numbers(self, name: str, default: float) -> dict[str, float]:
        """Of each specialist, the same in all tensors."""
        found = {}
        for one, value in self.each(name, default).items():
            if isinstance(value, list):
                raise InputError(f"{self.where}: {name} of {one}: must be one number for all tensors here; give that")
            found[one] = value
        return found

    def flag(self, name: str, default: bool) -> bool:
        """True or false, of the merge."""
        return flag_of(name, self._whole, default)

    def refuse_unless(self, name: str, expected: float | bool) -> None:
        """Refuse another value of a parameter that is not there in ours."""
        found = self.flag(name, expected) if isinstance(expected, bool) else self.number(name, expected)
        if found != expected:
            raise InputError(f"{self._whole.where}.{name}: only {str(expected).lower()} is known here; leave it out")

    def _of(self, reference: str, name: str, default: float | None) -> Value:
        scopes = [self._whole]
        if reference in self._document.models:
            index = [*self._document.models].index(reference)
            own = Scope(f"{self.where}: models.{index}.parameters", self._document.models[reference])
            scopes = [own, self._whole]
        try:
            return self._value(name, scopes, default)
        except MissingError as error:
            raise InputError(
                f"{self.where}: {reference}: {error}; add it under its parameters, or all models'"
            ) from None

    def _value(self, name: str, scopes: list[Scope], default: float | None) -> Value:
        try:
            return value_of(name, scopes, default)
        except MissingError as error:
            if len(scopes) > 1 or scopes[0] is not self._whole:
                raise
            raise InputError(f"{self._whole.where}: {error}; add it") from None

    def _check_names(self, kind: _Kind) -> None:
        """Refuse names that no method has; note those that mean nothing here, as in mergekit."""
        document, ignored = self._document, []
        places = [("parameters", document.parameters, frozenset({*kind.of_models, *kind.of_merge}))]
        for index, (reference, parameters) in enumerate(document.models.items()):
            is_merged = reference != document.base or kind.weighs_base
            counts = frozenset(kind.of_models) if is_merged else _EVERYWHERE
            places.append((f"models.{index}.parameters", parameters, counts))
        for at, parameters, counts in places:
            for name, value in parameters.items():
                if name not in _EVERYWHERE:
                    raise InputError(f"{self.where}: {at}: unknown {name!r:.80}; {nearest(name, _EVERYWHERE)}")
                if name == _MASKS and value is not None:
                    self.notes.append(f"recipe: {at}.{name}: how mergekit keeps its masks; ignored")
                elif value is not None and name not in counts:
                    ignored.append(f"{at}.{name}")
        if ignored:
            what = f"{', '.join(ignored):.200}"
            self.notes.append(f"recipe: {what}: means nothing there to {self.method}; ignored, as in mergekit")


@dataclass(frozen=True)
class _Kind:
    """A method of mergekit's.

    Attributes:
        method: ours.
        translate: makes our hyper-parameters.
        of_models: names of its parameters that each model may have otherwise.
        of_merge: names of those of the whole merge.
        needs_base: whether it has task vectors.
        weighs_base: whether the base is one of the models that are merged.
        around: whether it is around zero: never, always, or where there is no base.
        only_one: whether it merges the base with one model.
    """

    method: str
    translate: Callable[[_Said], dict[str, Any]]
    of_models: tuple[str, ...] = ()
    of_merge: tuple[str, ...] = ()
    needs_base: bool = True
    weighs_base: bool = False
    around: str = "base"
    only_one: bool = False

    def is_around_zero(self, document: Document) -> bool:
        """Whether models are merged as they are, not as task vectors, and each counts as one."""
        return self.around == "zero" or (self.around == "either" and document.base is None)


def _linear(said: _Said) -> dict[str, Any]:
    weights = said.each("weight")
    base = said.of_base("weight")
    normalize = said.flag("normalize", True)
    if normalize:
        weights, base = _within_bounds({**weights, "": base})
    return {"weight": weights, "base_weight": base, "normalize": normalize}


def _within_bounds(weights: dict[str, Value]) -> tuple[dict[str, Value], Value]:
    """Weights of which only the shares count, small enough; the last is by itself."""
    low, high = (min(map(smallest, weights.values())), max(map(largest, weights.values())))
    if low < _LEAST_WEIGHT or high > _MOST_WEIGHT:
        weights = {name: scaled(-_LEAST_WEIGHT / high, one) for name, one in weights.items()}
    *names, last = weights
    return {name: weights[name] for name in names}, weights[last]


def _task_arithmetic(said: _Said) -> dict[str, Any]:
    weights, scale, normalize = said.each("weight"), said.whole("lambda", 1.0), said.flag("normalize", False)
    if not normalize and not isinstance(scale, list):
        return {"scaling_coef": {name: scaled(scale, one) for name, one in weights.items()}}
    return {"scaling_coef": dict.fromkeys(weights, scale), "weight": weights, "normalize": normalize}


def _ties(said: _Said) -> dict[str, Any]:
    weights = said.each("weight")
    return {
        "trim": "tensor",
        "weight": weights,
        "density": _densities(said),
        "merge_func": "mean" if said.flag("normalize", True) else "sum",
        "rescale": said.flag("rescale", False),
        "scaling_coef": dict.fromkeys(weights, said.whole("lambda", 1.0)),
    }


def _sparse(said: _Said, *, normalize: bool, rescale: bool) -> dict[str, Any]:
    return {
        "weight": said.each("weight"),
        "density": _densities(said),
        "normalize": said.flag("normalize", normalize),
        "rescale": said.flag("rescale", rescale),
        "scaling_coef": said.whole("lambda", 1.0),
    }


def _dare(said: _Said) -> dict[str, Any]:
    parameters = _sparse(said, normalize=False, rescale=True)
    _note_masks(said, parameters)
    return parameters


def _breadcrumbs(said: _Said) -> dict[str, Any]:
    return {**_sparse(said, normalize=False, rescale=False), "gamma": said.numbers("gamma", 0.01)}


def _della(said: _Said) -> dict[str, Any]:
    elects = said.method == "della"
    parameters = {
        **_sparse(said, normalize=elects, rescale=True),
        "epsilon": said.numbers("epsilon", 0.15),
    }
    for name, density in parameters["density"].items():
        epsilon = parameters["epsilon"][name]
        kept = [one for one in _ends(density) if 0 < one < 1]
        if any(one + epsilon >= 1 or one - epsilon <= 0 for one in kept):
            raise InputError(
                f"{said.where}: {name}: density +/- epsilon must be between 0 and 1, and epsilon is {epsilon:g} "
                f"(mergekit's default is 0.15), density {kept[0]:g}; give a smaller epsilon"
            )
    _note_masks(said, parameters)
    return parameters


def _ends(value: Value) -> list[float]:
    return [smallest(value), largest(value)]


def _densities(said: _Said) -> dict[str, Value]:
    """Shares that are kept; of one above 1 mergekit keeps all, of one below 0 nothing."""
    found = {}
    for name, value in said.each("density", 1.0).items():
        if smallest(value) < 0 or largest(value) > 1 or value == 0:
            raise InputError(f"{said.where}: density of {name} must be above 0 and up to 1; give such a number")
        found[name] = value
    return found


def _note_masks(said: _Said, parameters: Mapping[str, Any]) -> None:
    if any(smallest(one) < 1 for one in parameters["density"].values()):
        how = " and divided by their probability, where mergekit gives a tensor its 1-norm again"
        said.notes.append(
            f"recipe: {said.method}: entries are dropped at random by other numbers than mergekit's"
            + (how if parameters["rescale"] else "")
        )


def _sce(said: _Said) -> dict[str, Any]:
    return {"select_topk": said.number("select_topk", 1.0), "alike_below": 1e-6, "scaling_coef": 1.0}


def _ram(said: _Said) -> dict[str, Any]:
    return {"epsilon": said.number("epsilon", 1e-5)}


def _ram_plus(said: _Said) -> dict[str, Any]:
    return {**_ram(said), "r": said.number("r", 0.1), "alpha": said.number("alpha", 0.2)}


def _model_stock(said: _Said) -> dict[str, Any]:
    said.refuse_unless("filter_wise", False)
    return {}


def _slerp(said: _Said) -> dict[str, Any]:
    return {"t": dict.fromkeys(said.names, said.whole("t"))}


def _nuslerp(said: _Said) -> dict[str, Any]:
    said.refuse_unless("nuslerp_flatten", True)
    return {**_relative(said), "around": "zero" if said.is_around_zero else "base"}


def _multislerp(said: _Said) -> dict[str, Any]:
    said.refuse_unless("eps", 1e-8)
    normalize = said.flag("normalize_weights", True)
    weights = _relative(said) if normalize else {"weight": said.each("weight")}
    return {**weights, "normalize": normalize, "around": "zero" if said.is_around_zero else "base"}


def _relative(said: _Said) -> dict[str, Any]:
    """Weights of which only the shares count."""
    weights, _ = _within_bounds({**said.each("weight"), "": 0.0})
    return {"weight": weights}


def _karcher(said: _Said) -> dict[str, Any]:
    return {"steps": int(said.number("max_iter", 10)), "tolerance": said.number("tol", 1e-5), "around": "zero"}


_MASKS = "int8_mask"
_WEIGHTED = ("weight", "density")
_OF_MERGE = ("normalize", "rescale", "lambda")
_KINDS: dict[str, _Kind] = {
    "linear": _Kind("linear", _linear, ("weight",), ("normalize",), needs_base=False, weighs_base=True),
    "task_arithmetic": _Kind("task_arithmetic", _task_arithmetic, ("weight",), ("normalize", "lambda")),
    "ties": _Kind("ties", _ties, _WEIGHTED, _OF_MERGE),
    "dare_ties": _Kind("dare_ties", _dare, _WEIGHTED, _OF_MERGE),
    "dare_linear": _Kind("dare_linear", _dare, _WEIGHTED, _OF_MERGE),
    "breadcrumbs": _Kind("breadcrumbs", _breadcrumbs, (*_WEIGHTED, "gamma"), _OF_MERGE),
    "breadcrumbs_ties": _Kind("breadcrumbs_ties", _breadcrumbs, (*_WEIGHTED, "gamma"), _OF_MERGE),
    "della": _Kind("della", _della, (*_WEIGHTED, "epsilon"), _OF_MERGE),
    "della_linear": _Kind("della_linear", _della, (*_WEIGHTED, "epsilon"), _OF_MERGE),
    "sce": _Kind("sce", _sce, (), ("select_topk",)),
    "ram": _Kind("ram", _ram, (), ("epsilon",)),
    "ramplus_tl": _Kind("ram_plus", _ram_plus, (), ("epsilon", "r", "alpha")),
    "model_stock": _Kind("model_stock", _model_stock, (), ("filter_wise",)),
    "slerp": _Kind("slerp", _slerp, (), ("t",), only_one=True),
    "nuslerp": _Kind(
        "nuslerp",
        _nuslerp,
        ("weight",),
        ("nuslerp_flatten", "nuslerp_row_wise"),
        needs_base=False,
        around="either",
    ),
    "multislerp": _Kind(
        "multislerp", _multislerp, ("weight",), ("normalize_weights", "eps"), needs_base=False, around="either"
    ),
    "karcher": _Kind("karcher", _karcher, (), ("max_iter", "tol"), needs_base=False, weighs_base=True, around="zero"),
}
_REFUSED = {
    "passthrough": "copies layers of models as they are, which is no merge",
    "arcee_fusion": "is not among the methods here",
    "nearswap": "is not among the methods here",
}
_EVERYWHERE = frozenset(
    {_MASKS, "scale", *(name for kind in _KINDS.values() for name in (*kind.of_models, *kind.of_merge))}
)
"""Parameters of any method: what one has no use for is passed over, as in mergekit."""
