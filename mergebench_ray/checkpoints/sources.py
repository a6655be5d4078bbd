"""From a reference to a file or folder of this machine: paths, installed packages, the hub."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mergebench_ray.checkpoints.accompanying_files import ACCOMPANYING, RECIPE_NAME
from mergebench_ray.config import ModelRef
from mergebench_ray.config.reference import HUB_ID, HUB_SCHEME, exists_here
from mergebench_ray.errors import InputError
from mergebench_ray.install_hints import install_command
from mergebench_ray.object_storage.address import is_address

_PACKAGE = "package:"
_FETCHED = ["*.safetensors", "*.json", RECIPE_NAME, *ACCOMPANYING, *map(str.lower, ACCOMPANYING)]
# Copies in other formats that some models carry beside their weights or in subfolders.
_NOT_FETCHED = ["*/*.safetensors", "consolidated*.safetensors", "model.*.safetensors"]


def locate(ref: ModelRef) -> Path:
    """The file or folder that a reference (without its adapter) names; hub models are fetched or found in the cache.

    Raises:
        InputError: if there is no such file, folder, package or model, with what to do.
    """
    if is_on_hub(ref):
        return _fetch(ref)
    if ref.source.startswith(_PACKAGE):
        return _locate_in_package(ref)
    if ref.revision is None and exists_here(ref.source):
        return Path(ref.source).expanduser().absolute()
    raise InputError(f"model {ref.model}: no such file or folder, and not a hub id (owner/name); check the path")


def check_there(ref: ModelRef) -> None:
    """Check that what a reference (with its adapter) names on this machine is there; hub and storage are not asked.

    Raises:
        InputError: as `locate`.
    """
    for one in (ref.model, ref.adapter):
        if one is not None and not is_on_hub(one) and not is_address(one.source):
            locate(one)


def is_on_hub(ref: ModelRef) -> bool:
    """Whether a reference (without its adapter) names a model on the hub, not a file or folder of this machine."""
    if ref.source.startswith(HUB_SCHEME):
        return True
    if ref.revision is None and exists_here(ref.source):
        return False
    return not ref.source.startswith((".", "/", "~")) and HUB_ID.fullmatch(ref.source) is not None


def is_local(ref: ModelRef) -> bool:
    """Whether a reference (without its adapter) names a path, which means something on this machine alone."""
    return not (is_on_hub(ref) or is_address(ref.source) or ref.source.startswith(_PACKAGE))


def _locate_in_package(ref: ModelRef) -> Path:
    """A path inside an installed package, found without importing the package."""
    package, _, inside = ref.source.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise InputError(f"model {ref.model}: write package:NAME/PATH, with a path inside the package")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"model {ref.model}: the package {package!r} is not installed; run: {install_command(package)}"
        )
    for folder in spec.submodule_search_locations:
        if exists_here(f"{folder}/{inside}"):
            return Path(folder).absolute() / inside
    raise InputError(f"model {ref.model}: the installed package {package!r} holds no {inside!r}; check the path")


def is_fetched(ref: ModelRef) -> bool:
    """Whether all weights of a hub model are in the local cache."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(ref.hub_id, revision=ref.revision, local_files_only=True))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return True  # damaged: whoever reads it says so
    return all((folder / str(name)).is_file() for name in names)


def _fetch(ref: ModelRef) -> Path:
    """A snapshot of a hub model: safetensors, configuration and tokenizer files, never a pickle."""
    return fetch_files(ref, _FETCHED, _NOT_FETCHED)


def fetch_files(ref: ModelRef, names: Sequence[str], but_for: Sequence[str] = ()) -> Path:
    """A snapshot of a hub model that has some of its files, fetched or found in the cache.

    Args:
        ref: the model, without its adapter.
        names: patterns of names of files; those that are not there are missing.
        but_for: patterns of those that are left out.

    Raises:
        InputError: as `explained_hub_errors`.
    """
    from huggingface_hub import snapshot_download

    with explained_hub_errors(ref):
        folder = snapshot_download(
            ref.hub_id, revision=ref.revision, allow_patterns=list(names), ignore_patterns=list(but_for)
        )
    return Path(folder)


@contextmanager
def explained_hub_errors(ref: ModelRef) -> Iterator[None]:
    """Say in one line why the hub does not give a model.

    Raises:
        InputError: with what to do.
    """
    from huggingface_hub import errors

    try:
        yield
        return
    except errors.GatedRepoError:
        problem = "access is restricted; ask for access on its page, then run `hf auth login`"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {ref.revision!r}; check it"
    except errors.RepositoryNotFoundError:
        problem = "not on the hub, or private; check the name, or run `hf auth login`"
    except errors.LocalEntryNotFoundError:
        problem = "not in the local cache, and the hub is offline or unreachable; give a folder, or go online"
    except InputError:
        raise
    except Exception as error:  # which errors a lost connection is depends on the version of the hub's client
        problem = f"cannot be fetched ({type(error).__name__}: {error}); check the network, or give a folder"
    raise InputError(f"model {ref.model}: {problem}")
