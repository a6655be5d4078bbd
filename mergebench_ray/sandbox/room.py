"""The folder that a program in the sandbox works in: empty at its start, bounded in size, gone at its end.

Where the launcher has mounts of its own, the folder is a file system in memory whose size the kernel limits. Elsewhere
it lies on disk, each file has the size that resource limits allow, and the launcher looks every few milliseconds how
much there is in all. Imported by the sandbox's own small interpreter: standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_NO_SETUID, _NO_DEVICES, _NO_EXECUTION, _DETACH = 2, 4, 8, 2
_MOST_ENTRIES = 1024
_BLOCK_BYTES = 512


class Room:
    """An empty folder for one program.

    Args:
        folder: where to make it; a path that does not exist.
        num_bytes: that all files in it may take.
        owner: user who may write in it; None for this process's own.
        mounts: whether this process has mounts of its own.
    """

    def __init__(self, folder: str, num_bytes: int, *, owner: int | None, mounts: bool) -> None:
        self.folder = folder
        self._num_bytes = num_bytes
        os.mkdir(folder, 0o700)
        self._mounted = mounts and _mount_memory(folder, num_bytes)
        if owner is not None:
            os.chown(folder, owner, owner)

    @property
    def watched(self) -> bool:
        """Whether somebody has to ask `is_too_full` while the program runs."""
        return not self._mounted

    def is_too_full(self) -> bool:
        """Whether there is more in it than is allowed; reads no further than needed to know."""
        entries = num_bytes = 0
        pending = [self.folder]
        while pending:
            try:
                with os.scandir(pending.pop()) as found:
                    for entry in found:
                        status = entry.stat(follow_symlinks=False)
                        entries += 1
                        num_bytes += max(status.st_size, status.st_blocks * _BLOCK_BYTES)
                        if entries > _MOST_ENTRIES or num_bytes > self._num_bytes:
                            return True
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                pass  # the program has just removed it
            except OSError:
                return True  # made so that nobody can look: too deep, or without the right to read
        return False

    def close(self) -> None:
        """Remove it with all that is in it, once no process is left that could write there."""
        if self._mounted:
            ctypes.CDLL(None, use_errno=True).umount2(self.folder.encode(), _DETACH)
        remove_tree(self.folder)


def remove_tree(folder: str) -> None:
    """Remove a folder and all below it, however deep and whatever its modes; what resists is left.

    Folders inside are moved up first, so that no path grows too long.
    """
    folders = [folder]
    for current in folders:
        with contextlib.suppress(OSError):
            os.chmod(current, 0o700)
            with os.scandir(current) as found:
                entries = list(found)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_moved_to(folder, entry.path))
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
    for current in reversed(folders):
        with contextlib.suppress(OSError):
            os.rmdir(current)


def _moved_to(folder: str, path: str) -> str:
    new = os.path.join(folder, os.urandom(16).hex())
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)  # a folder that may not be written in cannot be moved either
        os.rename(path, new)
        return new
    return path


def _mount_memory(folder: str, num_bytes: int) -> bool:
    options = f"size={num_bytes},nr_inodes={_MOST_ENTRIES},mode=700".encode()
    flags = _NO_SETUID | _NO_DEVICES | _NO_EXECUTION
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mount(b"sandbox", folder.encode(), b"tmpfs", flags, options) == 0)
