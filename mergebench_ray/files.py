"""Files: opened only where they are files, written whole or not at all, and only where nothing is lost.

Where a command's output goes is asked of this module twice: `check_new_folder`, `check_new_file` or `check_writable`
before anything starts, `whole_folder` or `whole_file` when it is there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from mergebench_ray import interrupts
from mergebench_ray.errors import InputError, without_credentials

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Of libraries that raise errors of their own, and of this module.
_FULL_DISK_TEXTS = ("No space left on device", "disk is full", "no space left on the disk")
_PART = ".part"
_TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{8}}(?:{re.escape(_PART)})?", re.DOTALL)  # earlier versions had no ending
_SCHEME = re.compile(r"[a-z][a-z0-9]{1,4}:")
_LAST = "config.json"  # without it nothing takes a folder for a model


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


def check_new_folder(path: Path, option: str = "--out", *, num_bytes: int = 0) -> None:
    """Find out, leaving nothing behind, whether `whole_folder` will be able to make a folder here.

    Args:
        path: the folder; it may exist if it is empty, also behind a link.
        option: what the user can change, for the message.
        num_bytes: how much will be written, as far as that is known.

    Raises:
        InputError: it exists and is not an empty folder, or cannot be written, or there is too little room.
    """
    with explain_refusals(path, option):
        target = _new_folder(path, option)
        with _made(_workplace(target)) as folder:
            _try(folder, target.name)
            usage = shutil.disk_usage(folder)
    if usage.total > 0 and usage.free < num_bytes:
        raise InputError(
            f"output {path} takes {num_bytes / 1e9:.2f} GB, and {usage.free / 1e9:.2f} GB are free there: free some, "
            f"or choose another {option}"
        )


def check_new_file(path: Path, option: str = "--out") -> None:
    """Find out, leaving nothing behind, whether `whole_file` will be able to make a file here that is not there yet.

    Raises:
        InputError: there is something of this name, a link to nothing included, or it cannot be written.
    """
    with explain_refusals(path, option):
        if os.path.lexists(path):
            raise InputError(f"output {path} exists already: choose another {option} or remove it")
        _try_file(path, option)


def check_replaceable_file(path: Path, option: str) -> None:
    """Find out, leaving nothing behind, whether `whole_file` will be able to make or replace a file here.

    Raises:
        InputError: what is there is a folder, pipe, device or link to nothing, or it cannot be written.
    """
    with explain_refusals(path, option):
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path}: not a regular file (a folder, pipe, device, or link to nothing); name another")
        _try_file(path.resolve(), option)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Find out, leaving nothing behind, whether files can be made in a folder, which itself may have to be made.

    Raises:
        InputError: it is something else than a folder, or cannot be written.
    """
    with explain_refusals(folder, option):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"output {folder} exists and is not a folder: choose another {option} or remove it")
        with _made(folder.resolve()) as made:
            _try(made, "")


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a `whole_file` or `whole_folder` that was killed left in a folder that nobody else writes in."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def cannot_lock(error: OSError) -> bool:
    """Whether an error says that a file system has no locks."""
    return error.errno in _NO_LOCKS


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, whatever library it is of, says that the disk is full, or came of one that does."""
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return True
    before = error.__cause__ or error.__context__
    return any(text in str(error) for text in _FULL_DISK_TEXTS) or (before is not None and is_full_disk(before))


@contextmanager
def whole_file(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path` in one step, on any error it is removed.

    Args:
        path: the file; what is there is replaced.
        new: never replace anything.

    Raises:
        InputError: it cannot be written, the disk is full, or there is something already with `new`.
    """
    with _made(path.parent, path, keep=True) as folder, ExitStack() as held:
        with _explained(path):
            _remove_abandoned(folder, path.name)
            temporary = held.enter_context(_held(folder, path.name, Path.touch))
        with _explained_if_full(path):
            yield temporary
        with _explained(path):
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            _rename(temporary, path, new)
            sync_folder(folder)


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `path`, on any error it is removed.

    Args:
        path: the folder.
        replace: take the place of a folder that is there, which stays whole until then.

    Raises:
        InputError: if `path` exists already and is not an empty folder, cannot be written, or the disk is full.
    """
    with _explained(path):
        target = path.resolve() if replace else _new_folder(path, "folder")
        place = _workplace(target)
    with _made(place, path, keep=True), ExitStack() as held:
        with _explained(path):
            temporary = held.enter_context(_held(place, target.name, Path.mkdir))
        with _explained_if_full(path):
            yield temporary
        with _explained(path):
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
            _become(temporary, target, replace)
            sync_folder(place)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which is removed at the end, as is what killed processes left of theirs.

    Raises:
        InputError: it cannot be made, or the disk is full.
    """
    with _made(path.parent, path, keep=True) as folder, ExitStack() as held:
        with _explained(path):
            _remove_abandoned(folder, path.name)
            temporary = held.enter_context(_held(folder, path.name, Path.mkdir))
        with _explained_if_full(path):
            yield temporary


def _temporary(folder: Path, name: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}{_PART}"


@contextmanager
def _held(folder: Path, name: str, make: Callable[[Path], object]) -> Iterator[Path]:
    """Make a temporary file or folder; it is locked until the block ends, which removes what is left of it.

    The kernel frees the lock of a process that is killed.
    """
    while True:
        path = _temporary(folder, name)
        try:
            make(path)
            with _opened(path) as descriptor:
                with suppress(OSError):  # a file system without locks: there nothing is taken for abandoned
                    lock_descriptor(descriptor)
                if path.exists():  # not taken for abandoned before it was locked
                    yield path
                    return
        finally:
            _remove(path)


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove what processes left that were killed while they wrote `name` here: nobody holds its lock any more."""
    wanted = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}{re.escape(_PART)}")
    with suppress(OSError):
        for path in [one for one in folder.iterdir() if wanted.fullmatch(one.name)]:
            with suppress(OSError), _opened(path) as descriptor:
                if lock_descriptor(descriptor, blocking=False):
                    _remove(path)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _new_folder(path: Path, option: str) -> Path:
    """Where links lead; what is there must be nothing or an empty folder."""
    for one in (path, *path.parents):
        if one.is_symlink() and not one.exists():
            raise InputError(f"output {path}: {one} is a link to nothing; choose another {option} or remove it")
    target = path.resolve()
    _remove_abandoned(_workplace(target), target.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"output {path} exists already: choose another {option} or remove it")
    return target


def workplace_of(path: Path) -> Path:
    """Where `whole_folder` prepares a folder, or the nearest folder above that is there by now."""
    place = _workplace(path.resolve())
    return next(one for one in (place, *place.parents) if one.is_dir())


def _workplace(target: Path) -> Path:
    """Where a folder is prepared: beside it, or in it where it cannot be replaced, as where a volume is mounted."""
    fixed = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    return target if fixed else target.parent


def _become(temporary: Path, target: Path, replace: bool) -> None:
    if temporary.parent != target:
        before = _temporary(target.parent, target.name)
        if target.is_dir():
            os.replace(target, before) if replace else target.rmdir()
        os.replace(temporary, target)
        _remove(before)
        return
    moved: list[Path] = []
    try:
        for entry in sorted(temporary.iterdir(), key=lambda entry: (entry.name == _LAST, entry.name)):
            os.replace(entry, target / entry.name)
            moved.append(target / entry.name)
    except BaseException:
        for entry in moved:
            _remove(entry)
        raise


def _rename(temporary: Path, path: Path, new: bool) -> None:
    if not new:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise InputError(f"output {path} exists by now: choose another name or remove it") from None
    except OSError:
        # A file system without links.
        if os.path.lexists(path):
            raise InputError(f"output {path} exists by now: choose another name or remove it") from None
        os.replace(temporary, path)


def _try_file(path: Path, option: str) -> None:
    if not path.name:
        raise InputError(f"output {path} is no file name: choose another {option}")
    with _made(path.parent) as folder:
        _try(folder, path.name)


def _try(folder: Path, name: str) -> None:
    """Make and remove a file with a name as long as that of the temporary ones."""
    probe = _temporary(folder, name)
    try:
        probe.touch(exist_ok=False)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


@contextmanager
def _made(folder: Path, path: Path | None = None, *, keep: bool = False) -> Iterator[Path]:
    """Make a folder with its parents; those that had to be made are removed again, with `keep` only after an error."""
    interrupts.clean_up_first()
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    done = False
    try:
        with _explained(path) if path is not None else nullcontext():
            if not next(one for one in (folder, *folder.parents) if os.path.lexists(one)).is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "below something that is no folder")
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
        done = keep
    finally:
        for one in [] if done else missing:
            # Not where somebody else has put something there meanwhile.
            with suppress(OSError):
                one.rmdir()


@contextmanager
def explain_refusals(path: Path, option: str) -> Iterator[None]:
    """Turn what the system says of a path into one line; a null byte is a ValueError, a loop of links RuntimeError."""
    if len(path.parts) > 1 and _SCHEME.fullmatch(path.parts[0]):
        # As a path it has lost a slash, and would be a folder of that name here.
        address = without_credentials(f"{path.parts[0]}//{'/'.join(path.parts[1:])}")
        raise InputError(
            f"output {address}: only the model of `merge` is written to s3:// and "
            f"gs://; choose another {option}, on a disk"
        )
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"output {path} cannot be written ({reason}): choose another {option}") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    with explain_refusals(path, "place"), _explained_if_full(path):
        yield


@contextmanager
def _explained_if_full(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise InputError(f"no space left on the disk while writing {path}: free some and try again") from error
        raise
