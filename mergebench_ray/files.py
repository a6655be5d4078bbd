"""Files: opened only where they are files, written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mergebench_ray import interrupts
from mergebench_ray.errors import InputError


def open_regular(path: Path) -> BinaryIO:
    """Open a file that somebody named, for reading bytes.

    A pipe would wait for a writer without end, a device such as ``/dev/zero`` never ends, so both are refused.

    Raises:
        FileNotFoundError, OSError: as `open`.
        InputError: if it is a folder, pipe, socket or device.
    """
    # A pipe opened without O_NONBLOCK waits before its kind can be asked; on a regular file the flag does nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path}: not a regular file (a folder, pipe or device); check the path")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left" into an `InputError` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"no space left on the disk while writing {folder}: free some and try again") from error
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on any error it is removed."""
    interrupts.clean_up_first()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with explain_full_disk(path.parent):
            temporary.touch(exist_ok=False)
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any error it is removed.

    Raises:
        InputError: if `path` exists already and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"output {path} exists already: choose another folder or remove it")
    interrupts.clean_up_first()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with explain_full_disk(path.parent):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
