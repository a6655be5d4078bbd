"""What a mergekit recipe says, read from its file; what this program has no equal of is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mergebench_ray.config import ModelRef
from mergebench_ray.config.recipe import WeightType
from mergebench_ray.errors import InputError, nearest

METHOD = "merge_method"
_MODELS = ("models", "slices")
_KEYS = (
    *_MODELS,
    *(METHOD, "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
_ELSEWHERE = {
    "modules": "merges parts of a model by methods of their own, and only whole models are merged here",
    "experts": "builds a mixture of experts (mergekit-moe), which is no merge",
    "gate_mode": "builds a mixture of experts (mergekit-moe), which is no merge",
    "genome": "is a search by mergekit-evolve; write a sweep instead",
    "merges": "is several merges in a row (mergekit-multi); merge one after the other",
    "merge": "is several merges in a row (mergekit-multi); merge one after the other",
}
_WITHOUT_MEANING = frozenset(
    {
        *(
            "name",
            "description",
            "allow_crimes",
            "unsafe_truncate_embeddings",
            "transformers_cache",
            "lora_merge_cache",
        ),
        *("lora_merge_dtype", "cuda", "device", "low_cpu_memory", "out_shard_size", "copy_tokenizer", "clone_tensors"),
        *("trust_remote_code", "random_seed", "lazy_unpickle", "write_model_card", "safe_serialization", "verbosity"),
        *("quiet", "read_to_gpu", "multi_gpu", "num_threads", "gpu_rich", "async_write", "write_threads", "verbose"),
    }
)
"""Options of mergekit's commands and names, which mergekit passes over in a recipe, too."""
_DTYPES = ("bfloat16", "float16", "float32")
_UNSET = (None, "")
_TEMPLATES = ("auto", "chatml")
_SHORTEST_TEMPLATE = 20  # of text that is no name


@dataclass(frozen=True)
class Document:
    """A recipe of whole models.

    Attributes:
        where: its file, for messages.
        method: as mergekit calls it.
        models: reference -> parameters of that model, in their order.
        base: reference of the base; None where none is named.
        parameters: of the whole recipe.
        dtype: what is written: bfloat16, float16 or float32; None for that of the models.
        tokenizer: reference of the model whose tokenizer is taken; None where none is named.
        chat_template: its text or name; None for that of the tokenizer.
        layers: how many layers the models must have; None for any number.
        notes: what was passed over, a line each.
    """

    where: str
    method: str
    models: Mapping[str, Mapping[str, Any]]
    base: str | None
    parameters: Mapping[str, Any]
    dtype: WeightType | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    layers: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """The models that are merged, the base among them: the last, where it is not listed."""
        listed = [*self.models]
        return listed if self.base is None or self.base in listed else [*listed, self.base]


def is_mergekit(content: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file is meant for mergekit."""
    return METHOD in content or (
        "method" not in content and not {*content}.isdisjoint({*_ELSEWHERE, "models", "slices"})
    )


def read_document(content: Mapping[str, Any], path: Path) -> Document:
    """Take the content of a recipe apart.

    Raises:
        InputError: naming file, key and rule.
    """
    where, notes, layers = str(path), list[str](), None
    _check_keys(content, where, notes)
    listed, parameters = content.get("models"), _mapping(content.get("parameters"), f"{where}: parameters")
    if content.get("slices") is not None:
        if listed is not None:
            raise InputError(f"{where}: give one of models and slices")
        listed, layers, own = _whole_models(content["slices"], where)
        if twice := sorted(own.keys() & parameters.keys()):
            raise InputError(f"{where}: {twice[0]} is given in slices.0.parameters and in parameters; give it once")
        parameters = {**parameters, **own}
    models = _models(listed, where)
    base = None if content.get("base_model") in _UNSET else _reference(content["base_model"], f"{where}: base_model")
    method = content.get(METHOD)
    if not isinstance(method, str) or not method:
        raise InputError(f"{where}: merge_method is missing; add it")
    return Document(
        where,
        method,
        models,
        base,
        parameters,
        _written_dtype(content, where, notes),
        _tokenizer(content, base, where),
        _template(content.get("chat_template"), where),
        layers,
        notes,
    )


def _check_keys(content: Mapping[str, Any], where: str, notes: list[str]) -> None:
    for key in content:
        if content[key] is not None and key in _ELSEWHERE:
            raise InputError(f"{where}: {key}: {_ELSEWHERE[key]}")
    for key in content:
        if key in _WITHOUT_MEANING:
            notes.append(f"recipe: {key} means nothing there; ignored")
        elif key not in _KEYS and key not in _ELSEWHERE:
            raise InputError(f"{where}: unknown key {key!r:.80}; {nearest(key, (*_KEYS, *_ELSEWHERE))}")


def _models(listed: Any, where: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{where}: models: expected a list of {{model: REFERENCE, parameters: ...}}; add it")
    found: dict[str, Mapping[str, Any]] = {}
    for index, one in enumerate(listed):
        at = f"{where}: models.{index}"
        entry = _mapping(one, at)
        if odd := sorted({*entry} - {"model", "parameters"}):
            raise InputError(f"{at}: unknown key {odd[0]!r:.80}; {nearest(odd[0], ('model', 'parameters'))}")
        reference = _reference(entry.get("model"), f"{at}.model")
        if reference in found:
            raise InputError(f"{at}: {reference} is given twice; give it once")
        found[reference] = _mapping(entry.get("parameters"), f"{at}.parameters")
    return found


def _whole_models(slices: Any, where: str) -> tuple[list[Any], int, Mapping[str, Any]]:
    """The models of a single slice of all layers, which is how recipes were once written; how many; its parameters.

    Whether these are all layers is known when the models are.
    """
    only = f"{where}: slices: takes layers apart, and only whole models are merged here"
    if not isinstance(slices, list) or len(slices) != 1:
        raise InputError(only)
    one = _mapping(slices[0], f"{where}: slices.0")
    sources = one.get("sources")
    if {*one} - {"sources", "parameters"} or not isinstance(sources, list):
        raise InputError(only)
    listed, ranges = [], []
    for index, source in enumerate(sources):
        entry = _mapping(source, f"{where}: slices.0.sources.{index}")
        ranges.append(entry.get("layer_range"))
        listed.append({key: value for key, value in entry.items() if key != "layer_range"})
    first = ranges[0] if ranges else None
    if not isinstance(first, list) or len(first) != 2 or first[0] != 0 or not isinstance(first[1], int):
        raise InputError(only)
    if any(one != first for one in ranges):
        raise InputError(only)
    return listed, first[1], _mapping(one.get("parameters"), f"{where}: slices.0.parameters")


def _template(value: Any, where: str) -> str | None:
    if value in _UNSET:
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: chat_template = {value!r:.80}: expected a name or a template")
    if value in _TEMPLATES or ("{" in value and len(value) >= _SHORTEST_TEMPLATE):
        return value
    raise InputError(f"{where}: chat_template = {value!r:.80}: known are {', '.join(_TEMPLATES)}; or give its text")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} = {value!r:.80}: expected a mapping of keys to values")
    return value


def _reference(value: Any, where: str) -> str:
    """A model as one text: mergekit writes it so, too, or as {model: {path, revision}, lora: {path, revision}}."""
    if isinstance(value, Mapping) and "model" in value:
        if value.get("override_architecture") is not None:
            raise InputError(f"{where}: override_architecture is not understood; leave it out")
        parts = [_path(value["model"], where)]
        parts += [_path(value["lora"], where)] if value.get("lora") is not None else []
        value = "+".join(parts)
    text = _path(value, where)
    try:
        return str(ModelRef.parse(text))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _path(value: Any, where: str) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        revision = value.get("revision")
        return value["path"] if revision is None else f"{value['path']}@{revision}"
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} = {value!r:.80}: expected the reference of a model")
    return value


def _written_dtype(content: Mapping[str, Any], where: str, notes: list[str]) -> WeightType | None:
    """What the merge is written in, with a note where mergekit would round on the way."""
    given = {}
    for key in ("dtype", "out_dtype"):
        value = content.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name in _UNSET:
            continue
        if name not in (*_DTYPES, "float64"):
            raise InputError(f"{where}: {key} = {value!r:.80}: known are {', '.join(_DTYPES)}")
        given[key] = name
    written = given.get("out_dtype", given.get("dtype"))
    if written == "float64":
        raise InputError(f"{where}: float64 is not written; give out_dtype: float32, float16 or bfloat16")
    if given.get("dtype") not in (None, "float32"):
        notes.append(
            f"recipe: dtype: {given['dtype']}: sums are made in float32 and rounded once, to {written}, where mergekit "
            f"makes them in {given['dtype']}"
        )
    return cast(WeightType | None, written)


def _tokenizer(content: Mapping[str, Any], base: str | None, where: str) -> str | None:
    """Whose tokenizer is taken."""
    source, key = content.get("tokenizer_source"), "tokenizer_source"
    settings = content.get("tokenizer")
    if settings is not None:
        if source is not None:
            raise InputError(f"{where}: give one of tokenizer_source and tokenizer")
        settings, key = _mapping(settings, f"{where}: tokenizer"), "tokenizer.source"
        for odd in sorted({*settings} - {"source"}):
            if settings[odd]:
                raise InputError(f"{where}: tokenizer.{odd}: changes the vocabulary, which is not done here")
        source = settings.get("source", "union")
    if source in _UNSET:
        return None
    if source == "union":
        raise InputError(
            f"{where}: {key}: union puts vocabularies together, which is not done here; take base, or a model"
        )
    if source == "base":
        if base is None:
            raise InputError(f"{where}: {key}: base: there is no base_model; name it, or a model here")
        return base
    return _reference(source, f"{where}: {key}")
