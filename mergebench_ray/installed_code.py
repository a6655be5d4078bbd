"""What code a number comes from: the project's own sources, all packages beside it, and files of others' functions."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

_NOT_LOOKED_INTO = frozenset({"__pycache__", "node_modules", "site-packages"})


@functools.cache
def installed_code(but_for: frozenset[str] = frozenset()) -> str:
    """SHA-256 of this package's own sources, and of names and versions of all that is installed beside it.

    Args:
        but_for: names of packages that do not matter.
    """
    digest = hashlib.sha256(sources_below([Path(__file__).parent]).encode())
    for name, version in sorted({(str(one.name).lower(), one.version) for one in distributions()}):
        if name not in but_for:
            digest.update(f"{name} {version}\n".encode())
    return digest.hexdigest()


def sources_below(folders: Iterable[Path]) -> str:
    """SHA-256 of the Python files in some folders and the folders in them; where they lie does not matter."""
    digest = hashlib.sha256()
    for content in sorted({hashlib.sha256(file.read_bytes()).digest() for one in folders for file in _sources(one)}):
        digest.update(content)
    return digest.hexdigest()


def source_file(function: Any) -> Path | None:
    """The file that a function or class was written in; None for one that is built in."""
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
    except TypeError:
        return None


def _sources(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if one not in _NOT_LOOKED_INTO and not one.startswith(".")]
        yield from (Path(path) / name for name in files if name.endswith(".py"))
