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
    return _digest_of(file for one in folders for file in _sources(one))


def sources_of(functions: Iterable[Any]) -> str:
    """SHA-256 of the files that functions and classes were written in; of one in a package, of all files beside it.

    This package's own are left out: `installed_code` knows them.
    """
    found = {source_file(one) for one in functions}
    files: set[Path] = set()
    for file in found:
        if file is not None and not file.is_relative_to(Path(__file__).parent):
            files |= (
                set(filter(_is_source, file.parent.glob("*.py"))) if (file.parent / "__init__.py").exists() else {file}
            )
    return _digest_of(files)


def source_file(function: Any) -> Path | None:
    """The file that a function or class was written in; None for one that is built in or was never in a file."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
    except (TypeError, OSError):
        return None
    return Path(found).resolve() if found else None


def _digest_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for content in sorted({hashlib.sha256(file.read_bytes()).digest() for file in files}):
        digest.update(content)
    return digest.hexdigest()


def _is_source(file: Path) -> bool:
    """Not what an editor leaves beside a file, such as a link to nowhere."""
    return file.suffix == ".py" and not file.name.startswith(".") and file.is_file()


def _sources(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if one not in _NOT_LOOKED_INTO and not one.startswith(".")]
        yield from (file for name in files if _is_source(file := Path(path) / name))
