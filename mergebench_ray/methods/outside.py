"""Methods in files of a user's own: a folder, which is named, and whose files then run as any code of the user does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mergebench_ray.errors import InputError, one_line
from mergebench_ray.files import open_regular
from mergebench_ray.methods.method import Method
from mergebench_ray.methods.registry import (
    add_methods,
    forget_methods,
    get_method,
    installed_methods,
    methods_in,
)
from mergebench_ray.outside_code import OutsideCode, code_of

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_folders: dict[str, Path] = {}
_HOW = "docs/adding-a-method.md shows a whole file"


def load_methods(folder: Path | str) -> list[str]:
    """Make the methods known, in this process, that a folder's ``*.py`` define.

    Each file stands for itself: it imports what is installed, and no file beside it. It is run, so give only what you
    would run. What it defines goes along to processes on other machines. A method of a file that was changed takes the
    place of the one before.

    Args:
        folder: of files as docs/adding-a-method.md shows one.

    Returns:
        their names, sorted.

    Raises:
        InputError: naming file and rule: it cannot be imported, defines no method, or one whose name is taken.
    """
    where = Path(folder).expanduser()
    try:
        files = sorted(one for one in where.iterdir() if one.suffix == ".py" and not one.name.startswith("."))
    except OSError as error:
        raise InputError(f"methods folder {where}: cannot be read ({error.strerror}); check the path") from error
    if not files:
        raise InputError(f"methods folder {where}: holds no *.py, so no method; check the path")
    taken, found = installed_methods(), dict[str, Method]()
    files_of: dict[str, Path] = {}
    for file in files:
        for name, method in _methods_of(file).items():
            if not _NAME.fullmatch(name):
                raise InputError(f"{file}: method {name!r:.80}: use lower-case letters, digits, underscores")
            if name in taken:
                raise InputError(f"{file}: method {name!r} is known already ({taken[name]}); choose another name")
            if name in found:
                raise InputError(f"{file}: {files_of[name]} defines method {name!r}, too; rename or remove one of them")
            found[name], files_of[name] = method, file
    folder_now = where.absolute()
    gone = {name for name, known in _folders.items() if known == folder_now} - found.keys()
    forget_methods(gone)
    for name in gone:
        del _folders[name]
    add_methods(found)
    _folders.update(dict.fromkeys(found, folder_now))
    return sorted(found)


def folder_of(method: str) -> Path | None:
    """The folder that a method was last loaded from in this process; None for those that are there without one."""
    return _folders.get(method)


def _methods_of(file: Path) -> dict[str, Method]:
    try:
        with open_regular(file) as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{file}: larger than {_MAX_BYTES >> 20} MiB, so it is no file of a method; remove it")
    try:
        code = OutsideCode(str(file.absolute()), content.decode()).imported()
    except (Exception, SystemExit) as error:  # whatever a file's code may raise
        raise InputError(f"{file}: cannot be imported ({one_line(error)}); mend or remove it") from error
    if not (methods := methods_in(code.module)):
        raise InputError(f"{file}: defines no method: put @register on its class ({_HOW}), or remove the file")
    return methods


def outside_files(methods: Iterable[str]) -> list[OutsideCode]:
    """The files that some of these methods are in, to be taken along to a process that is to know them."""
    codes = (code_of(type(get_method(name))) for name in methods)
    return list({code.module: code for code in codes if code is not None}.values())


def add_files(files: Iterable[OutsideCode]) -> None:
    """Make the methods of such files known in this process; they were checked where they come from."""
    for code in files:
        add_methods(methods_in(code.imported().module))
