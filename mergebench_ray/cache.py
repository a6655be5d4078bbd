"""The cache folder: compiled kernels, dequantised models, statistics, and digests of files that have not changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mergebench_ray.errors import InputError
from mergebench_ray.files import cannot_lock

_REMEDY = "set MERGEBENCH_RAY_CACHE to a writable folder"


def cache_folder(part: str) -> Path:
    """A folder of the cache, made if it is missing: under `$MERGEBENCH_RAY_CACHE`, or `~/.cache/mergebench_ray`.

    Raises:
        InputError: if it cannot be made.
    """
    root = os.environ.get("MERGEBENCH_RAY_CACHE") or "~/.cache/mergebench_ray"
    folder = Path(root).expanduser().absolute() / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache folder {folder} cannot be made ({error.strerror}); {_REMEDY}") from error
    return folder


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block.

    The kernel frees the lock when the process ends, however it ends; the file that stays behind blocks nobody.

    Raises:
        InputError: the cache cannot be written, or its file system cannot lock files.
    """
    try:
        held = FileLock(lock, fallback_to_soft=False).acquire()
    except OSError as error:
        done = "locked" if cannot_lock(error) else "written"
        raise InputError(f"cache file {lock} cannot be {done} ({error.strerror}); {_REMEDY}") from error
    with held:
        yield
