"""Which content of a file was seen, so that another one is noticed when it is read again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mergebench_ray.files import open_regular
from mergebench_ray.object_storage.fetched import RemoteFile


@dataclass(frozen=True)
class FileState:
    """What changes with a file's content.

    Attributes:
        host: the machine that saw it. Nodes may have copies of their own, of which only the size is comparable.
        size: in bytes.
        inode: another one where the file was replaced.
        modified: time of the last write in ns, which any program may set.
        changed: time of the last change in ns, which only the kernel sets.
    """

    host: str
    size: int
    inode: int
    modified: int
    changed: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """The state of an open file."""
        now = os.fstat(descriptor)
        return cls(_host(), now.st_size, now.st_ino, now.st_mtime_ns, now.st_ctime_ns)

    def differs_from(self, seen: FileState) -> str | None:
        """What is different since, in words; None if nothing is known to be."""
        if self.size != seen.size:
            return "became shorter" if self.size < seen.size else "became longer"
        return "was changed" if self.host == seen.host and self != seen else None


def as_seen(file: Path, state: FileState | RemoteFile) -> tuple[Path, FileState]:
    """A file and the state in which it was seen; of an object in storage, those of this node's copy of it.

    Raises:
        InputError: the object was replaced, or cannot be fetched.
        OSError: the copy cannot be read.
    """
    if isinstance(state, FileState):
        return file, state
    copy = state.here()
    with open_regular(copy) as stream:
        return copy, FileState.of(stream.fileno())


@cache
def _host() -> str:
    """A text that no other machine has."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()
