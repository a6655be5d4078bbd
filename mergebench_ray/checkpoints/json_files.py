"""JSON of checkpoints, which strangers write: one line for whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

MAX_JSON_BYTES = 100_000_000


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing, is no regular file, or holds something else.
    """
    content = _content(file)
    try:
        found = parse_json(content)
    except ValueError as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); mend or fetch the file again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a JSON object; mend or fetch the file again")
    return found


def require_json(file: Path) -> None:
    """Check that others will be able to read a file as JSON, whatever it holds.

    Raises:
        InputError: if not.
    """
    content = _content(file)
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); mend or fetch the file again") from error


def _content(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            content = stream.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{file}: this file of the checkpoint is missing; add it") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    if len(content) > MAX_JSON_BYTES:
        raise InputError(f"{file}: larger than {MAX_JSON_BYTES} bytes; mend or fetch the file again")
    return content


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON of which every part can be written again.

    Raises:
        ValueError: it is not JSON; a key comes twice in an object with different values, and one would be lost; text
            holds half of a surrogate pair, which no file can hold; or it is nested too deeply.
    """
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"the key {key[:100]!r} comes twice with different values")
        found[key] = value
    return found
