"""A folder of object storage in one state, and this node's copy of it in the cache, file by file as they are needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mergebench_ray.cache import one_at_a_time
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.copies import copies_folder, hold, make_room
from mergebench_ray.object_storage.objects import RemoteObject, read_range
from mergebench_ray.progress import Meter, Progress, silent

_RANGE_BYTES = 8 << 20
_RANGES_AT_ONCE = 8


@dataclass(frozen=True)
class RemoteFolder:
    """Objects of a folder, in the state in which they were seen; may be pickled to other nodes.

    The copy is named after addresses and ETags: what was replaced since has another one, and never gets into this.

    Attributes:
        address: the folder.
        objects: by name; a name may lie in a folder of the folder.
    """

    address: Address
    objects: tuple[tuple[str, RemoteObject], ...]

    @property
    def names(self) -> set[str]:
        """Names of its objects."""
        return {name for name, _ in self.objects}

    @property
    def folder(self) -> Path:
        """Where this node's copy is, as far as it was fetched."""
        states = [[name, one.size, one.etag] for name, one in self.objects]
        key = canonical_digest([str(self.address), states])
        return copies_folder() / f"{self.address.file_name}-{key[:32]}"

    def is_here(self, name: str) -> bool:
        """Whether this node has a file of it."""
        return _is_whole(self.folder / name, dict(self.objects)[name])

    def fetch(self, names: Iterable[str], progress: Progress = silent) -> Path:
        """Have files of it on this node. Several processes may ask at once: one fetches a file, the others wait for it.

        They stay there as long as a process that asked lives.

        Args:
            names: of its objects.
            progress: told how much is here.

        Returns:
            `folder`.

        Raises:
            InputError: one was replaced meanwhile or cannot be read, or the disk is too full.
        """
        folder, objects = self.folder, dict(self.objects)
        hold(folder)
        missing = {name: objects[name] for name in sorted(names) if not _is_whole(folder / name, objects[name])}
        if missing:
            total = sum(one.size for one in missing.values())
            _require_room(total, progress)
            meter = Meter(progress, f"fetching {self.address}", total)

            def bring(name: str) -> None:
                with one_at_a_time(folder / f".{canonical_digest(name)[:16]}.lock"):
                    if not _is_whole(folder / name, missing[name]):
                        _fetch(missing[name], folder / name, meter)

            # Large ones one after the other, as each is fetched in several ranges at once.
            with ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:
                list(pool.map(bring, (name for name, one in missing.items() if one.size <= _RANGE_BYTES)))
            for name in (name for name, one in missing.items() if one.size > _RANGE_BYTES):
                bring(name)
        return folder


@dataclass(frozen=True)
class RemoteFile:
    """A file of a remote folder.

    Attributes:
        folder: the folder.
        name: one of its names.
    """

    folder: RemoteFolder
    name: str

    @property
    def seen(self) -> RemoteObject:
        """The object, in the state in which it was seen."""
        return dict(self.folder.objects)[self.name]

    def here(self) -> Path:
        """The copy of this node, fetched if it is missing.

        Raises:
            InputError: as `RemoteFolder.fetch`.
        """
        return self.folder.fetch([self.name]) / self.name


def _is_whole(file: Path, one: RemoteObject) -> bool:
    try:
        return file.stat().st_size == one.size
    except OSError:
        return False


def require_room(files: Iterable[RemoteFile], progress: Progress = silent) -> None:
    """Find out whether this node has room for all of some files together, as far as they are not here yet.

    What nobody uses makes room for them; those that are here stay as long as this process lives.

    Args:
        files: the files.
        progress: told what was removed for them.

    Raises:
        InputError: it has not.
    """
    wanted = set(files)
    for folder in {file.folder for file in wanted}:
        hold(folder.folder)
    _require_room(sum(file.seen.size for file in wanted if not file.folder.is_here(file.name)), progress)


def _require_room(num_bytes: int, progress: Progress) -> None:
    make_room(num_bytes, progress)
    cache = copies_folder()
    free = shutil.disk_usage(cache).free
    if free < num_bytes:
        raise InputError(
            f"{num_bytes / 1e9:.2f} GB are to be fetched from object storage, and {free / 1e9:.2f} GB are free at "
            f"{cache}: free some, or set MERGEBENCH_RAY_CACHE to a folder with more room"
        )


def _fetch(one: RemoteObject, file: Path, meter: Meter) -> None:
    """Fetch an object in ranges, a few of them in memory at a time."""
    with whole_file(file) as temporary, temporary.open("rb+", buffering=0) as out:
        if one.size:
            os.posix_fallocate(out.fileno(), 0, one.size)

        def copy(start: int) -> int:
            content = read_range(one, start, min(start + _RANGE_BYTES, one.size))
            done = 0
            while done < len(content):
                done += os.pwrite(out.fileno(), content[done:], start + done)
            return done

        if one.size <= _RANGE_BYTES:
            meter.add(copy(0))
            return
        pool = ThreadPoolExecutor(_RANGES_AT_ONCE)
        try:
            for num_bytes in pool.map(copy, range(0, one.size, _RANGE_BYTES)):
                meter.add(num_bytes)
                meter.report()
        finally:
            pool.shutdown(cancel_futures=True)
