"""The files of a model: those of a folder of this machine, or copies of those of a folder of object storage."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from mergebench_ray.checkpoints.accompanying_files import FURTHER_TEMPLATES, RECIPE_NAME, is_accompanying, is_licence
from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.json_files import MAX_JSON_BYTES, parse_json
from mergebench_ray.checkpoints.safetensors_file import read_header, read_remote_header
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.fetched import RemoteFile, RemoteFolder
from mergebench_ray.object_storage.objects import RemoteObject, list_folder, read_range
from mergebench_ray.progress import Progress, silent

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
SAFETENSORS = ".safetensors"
_OF_HEADERS = (CONFIG_NAME, INDEX_NAME, ADAPTER_CONFIG)


class ModelFiles(Protocol):
    """The files of a model, wherever they are; may be pickled to other nodes."""

    @property
    def folder(self) -> Path:
        """A folder of this node with all but the weights, which may be missing."""

    def names(self) -> set[str]:
        """Names of what lies directly in the folder.

        Raises:
            InputError: what should be a file of the model is a pipe, device or broken link.
        """

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of a safetensors file.

        Raises:
            InputError: as `read_header`.
        """

    def fetch(self, progress: Progress = silent) -> None:
        """Have the weights in `folder`, too."""


class LocalFiles:
    """A folder of this machine.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> set[str]:
        """Names of what lies in it; what readers would wait for or miss is refused."""
        try:
            # Hidden files are nobody's weights: some systems leave one beside each file that they copy.
            entries = sorted(entry for entry in self.folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be read ({error.strerror}); check the folder") from error
        for entry in entries:
            if not _is_of_model(entry.name):
                continue
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                raise InputError(f"{entry}: cannot be read ({error.strerror}); fetch the checkpoint again") from error
            # Licences may have a folder of their own.
            if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and is_licence(entry.name)):
                raise InputError(f"{entry}: not a regular file (a folder, pipe or device); check the checkpoint")
        return {entry.name for entry in entries}

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of one of the files."""
        return read_header(self.folder / name)

    def fetch(self, progress: Progress = silent) -> None:
        """Nothing to do."""


class RemoteFiles:
    """A folder of object storage.

    Args:
        remote: what of it belongs to a model.
        present: names of all that lies directly in it.
        beside: what is fetched with the first look into `folder`.
    """

    def __init__(self, remote: RemoteFolder, present: Collection[str], beside: Collection[str]) -> None:
        self._remote = remote
        self._present = frozenset(present)
        self._beside = frozenset(beside)

    @property
    def folder(self) -> Path:
        """The copy of this node, with what lies beside the weights."""
        return self._remote.fetch(self._beside)

    def names(self) -> set[str]:
        """Names of what lies in it."""
        return set(self._present)

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of one of the files, read by ranges of bytes."""
        if name not in self._remote.names:
            raise InputError(f"{self._remote.address / name}: this file of the checkpoint is missing; add it")
        return read_remote_header(RemoteFile(self._remote, name))

    def fetch(self, progress: Progress = silent) -> None:
        """Have all of it on this node."""
        self._remote.fetch(self._remote.names, progress)

    def are_here(self) -> bool:
        """Whether nothing would have to be fetched."""
        return all(map(self._remote.is_here, self._remote.names))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Have errors name the object, not its copy, which may not be there yet.

        Raises:
            InputError: in place of another one.
        """
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(str(self._remote.folder), str(self._remote.address))) from error


def remote_files(address: Address, *, headers_only: bool = False) -> RemoteFiles:
    """Look at a folder of object storage; nothing is fetched yet.

    Args:
        address: the folder.
        headers_only: for whoever needs no more than configuration and headers.

    Raises:
        InputError: there is nothing, or it cannot be listed.
    """
    objects, folders = list_folder(address)
    if not objects:
        inside = f", but {', '.join(f'{address / name}' for name in sorted(folders)[:3])}" if folders else ""
        raise InputError(f"{address}: there are no files{inside}; give the folder that holds the checkpoint")
    present = {name for name in objects if not name.startswith(".")}
    if FURTHER_TEMPLATES in folders and not headers_only:
        templates, _ = list_folder(address / FURTHER_TEMPLATES)
        objects |= {f"{FURTHER_TEMPLATES}/{name}": one for name, one in templates.items() if name.endswith(".jinja")}
    others = _weights_beside(objects)
    wanted = {name: one for name, one in objects.items() if _comes_along(name) and name not in others}
    beside = {name for name in wanted if not name.endswith(SAFETENSORS) and (not headers_only or name in _OF_HEADERS)}
    return RemoteFiles(RemoteFolder(address, tuple(sorted(wanted.items()))), present, beside)


def _weights_beside(objects: Mapping[str, RemoteObject]) -> set[str]:
    """Weights that an index does not name, such as copies in other formats; none where who reads it will complain."""
    index = objects.get(INDEX_NAME)
    if index is None or index.size > MAX_JSON_BYTES:
        return set()
    try:
        named = set(parse_json(bytes(read_range(index, 0, index.size)))["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()
    return {name for name in objects if name.endswith(SAFETENSORS)} - named


def fetched_file(address: Address, progress: Progress | None = None) -> Path:
    """A copy on this node of an object, beside those of the licences that lie beside it.

    Raises:
        InputError: there is no such object, or it cannot be fetched.
    """
    objects, _ = list_folder(address.parent)
    if address.name not in objects:
        raise InputError(f"{address}: no such file; check the address")
    wanted = {name: one for name, one in objects.items() if name == address.name or is_licence(name)}
    remote = RemoteFolder(address.parent, tuple(sorted(wanted.items())))
    return remote.fetch(wanted, progress or silent) / address.name


def _comes_along(name: str) -> bool:
    """Whether a model needs a file, or a merge of it copies it, as from a folder of this machine; never a pickle."""
    if name == RECIPE_NAME or name.startswith(f"{FURTHER_TEMPLATES}/"):
        return True
    return not name.startswith(".") and (_is_of_model(name) or fnmatch(name, "*.json") or fnmatch(name, "*.py"))


def _is_of_model(name: str) -> bool:
    return name in _OF_HEADERS or name.endswith(SAFETENSORS) or is_accompanying(name)
