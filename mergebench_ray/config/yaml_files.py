"""YAML in and out, with errors that name file, key, value and rule in one line."""

from __future__ import annotations

from collections.abc import Hashable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mergebench_ray.errors import InputError

ModelT = TypeVar("ModelT", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice instead of silently keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: if the file is missing, is not YAML (with the line), or holds something else than a mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); check the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InputError(f"{where}: {problem}; mend the YAML there") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of keys to values at the top, found {type(data).__name__}")
    return data


def to_yaml(data: dict[str, Any]) -> str:
    """YAML text in the order of the mapping."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def parse_model(model: type[ModelT], data: Any, where: str) -> ModelT:
    """Build a pydantic model, turning its first error into one line.

    Raises:
        InputError: naming `where`, the key, the value, the rule and, for an unknown key, the closest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, model)}") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"]) or "(top level)"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_known_keys(model, [str(p) for p in first['loc']])}"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    value = repr(first["input"])
    return f"{key} = {value if len(value) < 80 else value[:77] + '...'}: {message}"


def _known_keys(model: type[BaseModel], location: list[str]) -> str:
    """Names the keys known where the unknown one stood, the closest first where one is close."""
    owner: Any = model
    for part in location[:-1]:
        field = owner.model_fields.get(part) if isinstance(owner, type) and issubclass(owner, BaseModel) else None
        owner = field.annotation if field else None
    if not (isinstance(owner, type) and issubclass(owner, BaseModel)):
        return "remove it"
    known = list(owner.model_fields)
    close = get_close_matches(location[-1], known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}"
