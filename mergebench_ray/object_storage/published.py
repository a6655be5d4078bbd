"""A model written to object storage, so that nobody ever reads half of one.

Stores have no rename. What makes a folder a model, its config.json, is written when all else is there; a claim, an
object that only one of two writers can make, keeps others away meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from mergebench_ray import interrupts
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.objects import create, list_folder, remove, upload
from mergebench_ray.progress import Meter, Progress, silent

_CLAIM = ".mergebench_ray.part"
_LAST = "config.json"
_FILES_AT_ONCE = 2


def check_new_address(address: Address, option: str = "--out") -> None:
    """Find out, leaving nothing behind, whether `publish` will be able to make a folder here.

    Raises:
        InputError: there is something, or objects cannot be listed, made or removed there.
    """
    _refuse_content(address, option)
    _claim(address, option)
    remove(address / _CLAIM)


def publish(folder: Path, address: Address, progress: Progress = silent, option: str = "--out") -> None:
    """Write a folder's files, whole or not at all: config.json comes last, and an error removes what is there by then.

    What a process leaves that is killed, or cannot remove it, has no config.json, and is refused as an output until
    somebody removes it.

    Args:
        folder: a model.
        address: where to.
        progress: told how much is there.
        option: what the user can change, for the message.

    Raises:
        InputError: there is something by now, or it cannot be written.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    meter = Meter(progress, f"writing {address}", sum(sizes.values()))

    stopped = Event()

    def sent(num_bytes: int) -> None:
        if stopped.is_set():
            raise InputError(f"{address}: not written, as another file could not be")
        meter.add(num_bytes)
        meter.report()

    def write(name: str) -> None:
        upload(files[name], address / name, sent)

    _claim(address, option)
    with _removed(address, [_LAST, *files]):
        pool = ThreadPoolExecutor(_FILES_AT_ONCE)
        try:
            for _ in pool.map(write, sorted(files.keys() - {_LAST})):
                pass
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            stopped.clear()
        _require_all(address, sizes)
        write(_LAST)


def _claim(address: Address, option: str) -> None:
    """Keep others from a folder, in which nothing else may be."""
    interrupts.clean_up_first()
    create(address / _CLAIM, b"mergebench_ray writes a model here, or was killed while it did\n")
    try:
        # Somebody may have ended since this process looked.
        _refuse_content(address, option, but=_CLAIM)
    except BaseException:
        with suppress(InputError):
            remove(address / _CLAIM)
        raise


def _refuse_content(address: Address, option: str, but: str = "") -> None:
    objects, folders = list_folder(address)
    objects.pop(but, None)
    if _LAST in objects or (_CLAIM not in objects and (objects or folders)):
        raise InputError(f"output {address} exists already: choose another {option} or remove it")
    if objects:
        raise InputError(
            f"output {address} holds an upload that is under way or was killed: wait for it, remove it, or choose "
            f"another {option}"
        )


@contextmanager
def _removed(address: Address, names: list[str]) -> Iterator[None]:
    """Remove the claim at the end of the block, and these before it, the first one first, after an error in it."""
    rest: list[str] = []
    try:
        yield
    except BaseException:
        rest = names
        raise
    finally:
        # A model is no less whole with a claim beside it. Where the network is down, one long wait is enough.
        with suppress(InputError):
            for name in (*rest, _CLAIM):
                remove(address / name)


def _require_all(address: Address, sizes: dict[str, int]) -> None:
    """Compare what the store lists with what was sent."""
    objects, _ = list_folder(address)
    for name, size in sizes.items():
        if "/" not in name and name != _LAST and (name not in objects or objects[name].size != size):
            raise InputError(f"{address / name}: is not as it was written; try again")
