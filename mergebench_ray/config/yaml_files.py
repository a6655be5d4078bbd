"""YAML in and out, with errors that name file, key, value and rule in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mergebench_ray.config.storage_url import hide_passwords_in
from mergebench_ray.config.yaml_reader import MAX_BYTES, YAMLReadError, dump_yaml, load_yaml
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.files import open_regular

ModelT = TypeVar("ModelT", bound=BaseModel)

_SHOWN = 80  # characters of a value in a message


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; keys are text as it is written.

    Raises:
        InputError: if the file is missing, is not YAML (with the line), or holds something else than a mapping.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(MAX_BYTES + 1)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{_shown_path(path)}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{_shown_path(path)}: cannot be read ({reason}); check the file") from error
    return parse_yaml(content, path)


def parse_yaml(content: bytes, path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping from what a file, or something else that `path` names, holds.

    Raises:
        InputError: as `read_yaml`.
    """
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so it is not what is expected; check the path")
    try:
        data = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from error
    except YAMLReadError as error:
        where = f"{path}, line {error.line}" if error.line else str(path)
        raise InputError(f"{where}: {error}; mend the YAML there") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise InputError(f"{path}: expected a mapping of keys to values at the top, found {found}")
    return data


def parse_setting(text: str, option: str) -> Any:
    """The value of a setting on the command line, as YAML.

    Raises:
        InputError: naming `option`, which holds the text.
    """
    try:
        return load_yaml(text)
    except YAMLReadError as error:
        raise InputError(f"{_shortened(option)}: the value is not YAML ({error}); quote it") from None


def to_yaml(data: dict[str, Any]) -> str:
    """YAML text in the order of the mapping."""
    return dump_yaml(data)


def parse_model(model: type[ModelT], data: Any, where: str) -> ModelT:
    """Build a pydantic model, turning its first error into one line.

    Raises:
        InputError: naming `where`, the key, the value, the rule and, for an unknown key, the closest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, model, data)}") from error


def _explain(error: ValidationError, model: type[BaseModel], data: Any) -> str:
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = _path_in(data, first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {_key(location)}; {_known_keys(model, location)}"
    if first["type"] == "missing":
        return f"key {_key([*location, str(first['loc'][-1])])} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = "expected a mapping of keys to values"
    return f"{_key(location)[1:-1] if location else '(top level)'} = {_shown(first['input'])}: {message}"


def _path_in(data: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of a location that stand in the data; pydantic adds the kinds that it tried on the way."""
    path = []
    for part in location:
        inside_list = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if inside_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
            path.append(str(part))
    return path


def _key(path: Sequence[str]) -> str:
    """A dotted key in quotes, line breaks and the like written out."""
    return _shortened(repr(".".join(path)))


def _shown(value: Any) -> str:
    try:
        return _shortened(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list that holds itself
        return f"a {type(value).__name__}"


def _shown_path(path: Path) -> str:
    text = str(path)
    return _shortened(text if text.isprintable() else repr(text), 300)


def _shortened(text: str, length: int = _SHOWN) -> str:
    text = hide_passwords_in(text)
    return text if len(text) < length else f"{text[: length - 4]}...{text[-1]}"


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> str:
    """Names the keys known where the unknown one stood, the closest first where one is close."""
    owner: Any = model
    for part in location[:-1]:
        owner = _below(owner, part)
    fields = [name for one in _models(owner) for name in one.model_fields]
    return nearest(location[-1], fields) if fields else "remove it"


def _below(annotation: Any, part: str) -> Any:
    """Type of what stands under a key: a model's field, or the values of a mapping."""
    for model in _models(annotation):
        if part in model.model_fields:
            return model.model_fields[part].annotation
    return annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of, such as both of `dict[str, A | B]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in get_args(annotation) for model in _models(one)]
