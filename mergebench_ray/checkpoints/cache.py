"""The cache folder: dequantised models and digests of files that have not changed since."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergebench_ray.errors import InputError

_REMEDY = "set MERGEBENCH_RAY_CACHE to a writable folder"


def cache_folder(part: str) -> Path:
    """A folder of the cache, made if it is missing: under `$MERGEBENCH_RAY_CACHE`, or `~/.cache/mergebench_ray`.

    Raises:
        InputError: if it cannot be made.
    """
    root = os.environ.get("MERGEBENCH_RAY_CACHE")
    folder = (Path(root).expanduser() if root else Path.home() / ".cache" / "mergebench_ray").absolute() / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache folder {folder} cannot be made ({error.strerror}); {_REMEDY}") from error
    return folder


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block; the lock goes with the process, however it ends.

    Raises:
        InputError: the cache cannot be written.
    """
    try:
        stream = lock.open("a")
    except OSError as error:
        raise InputError(f"cache file {lock} cannot be written ({error.strerror}); {_REMEDY}") from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
