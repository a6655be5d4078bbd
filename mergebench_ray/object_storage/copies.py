"""A node's copies of objects in the cache: which are in use, and which go where they would take too much room."""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from mergebench_ray.cache import cache_folder
from mergebench_ray.errors import InputError
from mergebench_ray.files import remove_leftovers
from mergebench_ray.progress import Progress

_PART = "objects"
_USED = ".used"
_MOST = "MERGEBENCH_RAY_OBJECTS_MAX_GB"
_held: dict[Path, int] = {}
_holding = threading.Lock()


def copies_folder() -> Path:
    """Where the cache has the copies, a folder each.

    Raises:
        InputError: it cannot be made.
    """
    return cache_folder(_PART)


def hold(copy: Path) -> None:
    """Have a copy, made if it is missing, stay as long as this process lives; it counts as used now.

    Raises:
        InputError: it cannot be made.
    """
    with _holding:
        if copy in _held:
            if _is_still(copy, _held[copy]):
                return
            os.close(_held.pop(copy))  # somebody has removed it by hand
        descriptor = _locked(copy)
        if descriptor is not None:
            with suppress(OSError):  # another user's
                os.utime(descriptor)
            _held[copy] = descriptor


def _locked(copy: Path) -> int | None:
    """An open file with a lock that others may have too; None where files can be neither made nor locked."""
    while True:
        cache_folder(f"{_PART}/{copy.name}")
        try:
            descriptor = os.open(copy / _USED, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # it was removed in between
            continue
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_still(copy, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def make_room(num_bytes: int, progress: Progress) -> None:
    """Remove copies that no process uses, the one first whose use began first, until so much more has room.

    All copies together take half of their disk at most, or as many GB as `$MERGEBENCH_RAY_OBJECTS_MAX_GB` says; those
    in use stay, whatever they take.

    Args:
        num_bytes: room for more.
        progress: told what was removed.

    Raises:
        InputError: the setting is no number of GB.
    """
    folder = copies_folder()
    disk = shutil.disk_usage(folder)
    most = most_bytes(_MOST, disk.total)
    sizes = {copy: _num_bytes(copy) for copy in folder.iterdir() if copy.is_dir() and not copy.name.startswith(".")}
    excess = max(sum(sizes.values()) + num_bytes - most, num_bytes - disk.free)
    if excess <= 0:
        return
    remove_leftovers(folder)  # of processes that were killed while they removed
    removed: list[Path] = []
    for copy in sorted(sizes, key=_last_used):
        if excess > 0 and _remove_unused(copy):
            removed.append(copy)
            excess -= sizes[copy]
    if removed:
        freed = sum(sizes[copy] for copy in removed)
        progress(
            0.0,
            f"{freed / 1e9:.2f} GB of copies of objects that nobody uses were removed from {folder}, as all may take "
            f"{most / 1e9:.2f} GB ({_MOST}): {', '.join(copy.name for copy in removed)}",
        )


def most_bytes(setting: str, disk_bytes: int) -> float:
    """How much a part of the cache may take: as many GB as a setting says, else half of its disk.

    Raises:
        InputError: the setting is no number of GB.
    """
    given = os.environ.get(setting)
    if not given:
        return disk_bytes / 2 or math.inf  # some file systems do not say
    try:
        most = float(given) * 1e9
    except ValueError:
        most = math.nan
    if not most >= 0:
        raise InputError(f"{setting}: {given!r} is no number of GB; write one such as 200, or leave it unset")
    return most


def _remove_unused(copy: Path) -> bool:
    """Remove a copy, unless a process uses it; no file of it is ever missing to one that begins to."""
    with suppress(OSError):
        descriptor = os.open(copy / _USED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(copy, descriptor):
                return False
            away = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
            copy.rename(away)
        finally:
            os.close(descriptor)
        shutil.rmtree(away, ignore_errors=True)
        return True
    return False


def _is_still(copy: Path, descriptor: int) -> bool:
    """Whether a lock is one of this copy, and not of one that was removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(copy / _USED))
    except OSError:
        return False


def _last_used(copy: Path) -> float:
    for file in (copy / _USED, copy):  # earlier versions did not say
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def _num_bytes(copy: Path) -> int:
    found = 0
    for folder, _, names in os.walk(copy):  # goes on where another process removes what it walks through
        for name in names:
            with suppress(OSError):
                found += os.stat(os.path.join(folder, name)).st_size
    return found
