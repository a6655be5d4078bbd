"""What transformers knows of a model from its configuration: defaults, number of layers, what is tied to what."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError, one_line
from mergebench_ray.families.family import ModelFamily, family_of

_MAX_LAYERS = 10_000
# Settings of which classes make lists with as many entries.
_PER_ENTRY = re.compile(r"layer|depth|block|stage|labels")


def full_config(config: Mapping[str, Any], file: Path) -> Any | None:
    """The configuration as transformers' own class reads it, defaults filled in; None where it has no such class.

    Code that lies beside a model is never run.

    Raises:
        InputError: if the class refuses it, or it has more layers than any model.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    # Classes make lists with an entry a layer.
    _refuse_many_layers(config, file)
    try:
        return CONFIG_MAPPING[kind].from_dict(_decoded(config))
    except Exception as error:  # other people's code on other people's data
        raise InputError(
            f"{file}: not a configuration of model_type {kind!r} ({one_line(error)}); mend or fetch the file again"
        ) from error


def _decoded(value: Any) -> Any:
    """A copy with the numbers that transformers writes as `{"__float__": "Infinity"}`, since JSON has none of them."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _decoded(one) for key, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def known_settings(config: Mapping[str, Any], file: Path) -> set[str] | None:
    """Names of the settings that transformers' own class of a configuration has; None if there is no such class."""
    full = full_config(config, file)
    if full is None:
        return None
    kind = type(full)
    return {*getattr(kind, "__dataclass_fields__", ()), *inspect.signature(kind).parameters, *kind.attribute_map}


def num_layers(config: Mapping[str, Any], file: Path) -> int:
    """Number of transformer layers, of the text part where there are several, whatever a family calls it.

    Raises:
        InputError: if the configuration does not say, or says something impossible.
    """
    counts = _family(config).layer_counts
    for part in (config, *_text_parts(config)):
        for key in counts:
            if part.get(key) is not None:
                return _as_count(part[key], key, file)
    full = full_config(config, file)
    found = None if full is None else _of_text(full, "num_hidden_layers")
    if found is None:
        raise InputError(f"{file}: {' or '.join(counts[:2])} is missing; give a language model's folder")
    return _as_count(found, "num_hidden_layers", file)


def attention_heads(config: Mapping[str, Any], file: Path) -> dict[str, int]:
    """How many attention heads there are, and how many of keys and values, where a configuration or its class says."""
    full = full_config(config, file)
    found = {}
    for key in ("num_attention_heads", "num_key_value_heads"):
        said = [part[key] for part in (config, *_text_parts(config)) if part.get(key) is not None]
        value = said[0] if said else None if full is None else _of_text(full, key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            found[key] = value
    return found


def has_tied_head(config: Mapping[str, Any], file: Path) -> bool:
    """Whether a configuration ties the output head to the embeddings; where it does not say, its class does."""
    said = config.get("tie_word_embeddings")
    if said is None:
        full = full_config(config, file)
        if full is not None:
            return bool(getattr(full, "tie_word_embeddings", _of_text(full, "tie_word_embeddings")))
        said = any(part.get("tie_word_embeddings") for part in _text_parts(config))
    return bool(said)


def ignored_tensors(config: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """Patterns of stored tensors that transformers' own class of a model passes over without a word."""
    found = _model_class(config)
    patterns = getattr(found, "_keys_to_ignore_on_load_unexpected", None) or []
    return [re.compile(pattern) for pattern in patterns]


def tables_and_heads(config: Mapping[str, Any], file: Path) -> set[str] | None:
    """Names of the weights that transformers' own class has as embeddings or output head; None if it has no class."""
    import torch

    model_class, full = _model_class(config), full_config(config, file)
    if model_class is None or full is None:
        return None
    try:
        with torch.device("meta"):
            model = model_class._from_config(full)
        modules = dict(model.named_modules())
        asked = [model.get_input_embeddings(), model.get_output_embeddings()]
    except Exception:  # other people's code on other people's data
        return None
    return {
        f"{name}.weight"
        for name, module in modules.items()
        if isinstance(module, torch.nn.Embedding) or any(module is one for one in asked)
    }


def tensor_shapes(config: Mapping[str, Any], file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight that transformers' own class makes of a configuration; a tied head is none.

    Raises:
        InputError: if transformers has no such class.
    """
    return {name: tuple(parameter.shape) for name, parameter in _skeleton(config, file).named_parameters()}


def transposed_experts(config: Mapping[str, Any], file: Path) -> dict[str, bool]:
    """Whether the module of each weight keeps its experts' matrices transposed, in the order of the weights in modules.

    Raises:
        InputError: if transformers has no class for the configuration.
    """
    model = _skeleton(config, file)
    modules = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]
    return {name: bool(getattr(modules[name.rpartition(".")[0]], "is_transposed", False)) for name in names}


def _skeleton(config: Mapping[str, Any], file: Path) -> Any:
    """A model of transformers' own class without weights."""
    import torch

    model_class, full = _model_class(config), full_config(config, file)
    if model_class is None or full is None:
        raise InputError(f"{file}: transformers has no class for model_type {config.get('model_type')!r}")
    with torch.device("meta"):
        return model_class._from_config(full)


def _model_class(config: Mapping[str, Any]) -> Any | None:
    """The class of transformers' own that a configuration names first."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    try:
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _family(config: Mapping[str, Any]) -> ModelFamily:
    return family_of(config.get("model_type"))


def _text_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [config[name] for name in _family(config).text_configs if isinstance(config.get(name), dict)]


def _of_text(full: Any, key: str) -> Any:
    """A setting of the part that reads and writes text."""
    try:
        return getattr(full.get_text_config(decoder=True), key, None)
    except (ValueError, AttributeError, TypeError):
        return None


def _as_count(value: Any, key: str, file: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_LAYERS:
        raise InputError(f"{file}: {key} = {str(value)[:40]!r} must be a whole number from 1 to {_MAX_LAYERS}")
    return value


def _refuse_many_layers(config: Mapping[str, Any], file: Path) -> None:
    parts = [config]
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif _PER_ENTRY.search(key) and isinstance(value, int | float) and value > _MAX_LAYERS:
                raise InputError(f"{file}: {key} = {str(value)[:40]} must be at most {_MAX_LAYERS}; mend the file")
