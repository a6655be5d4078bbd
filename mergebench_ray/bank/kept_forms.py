"""How much of what was made of task vectors stays on disk: those in use, and of the others the last ones used."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergebench_ray.files import remove_leftovers
from mergebench_ray.object_storage.copies import most_bytes
from mergebench_ray.progress import Progress

MANIFEST = "manifest.json"
SETTING = "MERGEBENCH_RAY_TRANSFORMED_MAX_GB"
_HELD = 4
"""Forms that a process has in use at most: those of its last candidates."""
_held: OrderedDict[Path, int] = OrderedDict()
_holding = threading.Lock()


def hold(form: Path) -> bool:
    """Have a form's folder stay while this process asks for few others; it counts as used now.

    Returns:
        whether it is there.
    """
    with _holding:
        before = _held.pop(form, None)
        if before is not None:
            os.close(before)
        descriptor = _locked(form, fcntl.LOCK_SH)
        if descriptor is None:
            return (form / MANIFEST).is_file()  # of a file system without locks nothing is removed
        with suppress(OSError):  # another user's
            os.utime(descriptor)
        _held[form] = descriptor
        while len(_held) > _HELD:
            os.close(_held.popitem(last=False)[1])
        return True


def make_room(folder: Path, num_bytes: int, progress: Progress) -> None:
    """Remove forms that no process uses, the one first that was used least recently, until so much more has room.

    All forms together take half of their disk at most, or as many GB as `$MERGEBENCH_RAY_TRANSFORMED_MAX_GB` says;
    those in use stay, and what is to come is made, whatever they take.

    Args:
        folder: of all forms.
        num_bytes: of what is to come.
        progress: told what was removed.

    Raises:
        InputError: the setting is no number of GB.
    """
    disk = shutil.disk_usage(folder)
    most = most_bytes(SETTING, disk.total)
    sizes = {form: _num_bytes(form) for form in folder.iterdir() if (form / MANIFEST).is_file()}
    excess = max(sum(sizes.values()) + num_bytes - most, num_bytes - disk.free)
    if excess <= 0:
        return
    remove_leftovers(folder)
    freed, count = 0, 0
    for form in sorted(sizes, key=_last_used):
        if freed < excess and _removed(form):
            freed, count = freed + sizes[form], count + 1
    if count:
        progress(
            0.0,
            f"{freed / 1e9:.2f} GB of {count} transforms that nobody uses were removed from {folder}, as all may take "
            f"{most / 1e9:.2f} GB ({SETTING})",
        )


def _removed(form: Path) -> bool:
    descriptor = _locked(form, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return False
    with _closing(descriptor), suppress(OSError):
        away = form.with_name(f".{form.name}.{secrets.token_hex(4)}")
        form.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        return True
    return False


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(form: Path, kind: int) -> int | None:
    """An open manifest with a lock; None where it is not there, is another's, or cannot be locked."""
    try:
        descriptor = os.open(form / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind)
        if os.path.samestat(os.fstat(descriptor), os.stat(form / MANIFEST)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _last_used(form: Path) -> float:
    with suppress(OSError):
        return (form / MANIFEST).stat().st_mtime
    return 0.0


def _num_bytes(form: Path) -> int:
    found = 0
    for file in form.rglob("*"):
        with suppress(OSError):
            found += file.stat().st_size
    return found
