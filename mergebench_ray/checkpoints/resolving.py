"""The one way in: from a reference to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.checkpoints.adapter import AdapterCheckpoint
from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.folder import FolderCheckpoint
from mergebench_ray.checkpoints.gguf import dequantise
from mergebench_ray.checkpoints.model_files import LocalFiles, fetched_file, remote_files
from mergebench_ray.checkpoints.quantised_checkpoint import as_plain
from mergebench_ray.checkpoints.sources import locate
from mergebench_ray.checkpoints.weight_files import PICKLE_ENDINGS, PICKLE_REASON
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address, is_address
from mergebench_ray.progress import Progress


def resolve(ref: ModelRef | Path | str, *, progress: Progress | None = None) -> Checkpoint:
    """Find a checkpoint and read its headers; no weights are loaded.

    A hub model is fetched (or found in the local cache when `HF_HUB_OFFLINE` is set), a GGUF file is dequantised into
    the cache once. Of a model in object storage only headers and what lies beside the weights are fetched: each node
    fetches those weights that it reads, once. Quantised weights are made plain as they are read.
    `$MERGEBENCH_RAY_CACHE` names the cache folder, `~/.cache/mergebench_ray` otherwise.

    Args:
        ref: any form of `ModelRef`.
        progress: told about steps that take longer than a moment.

    Raises:
        InputError: in one line, if it cannot be found, is broken, or is of a kind that is refused (pickles).
    """
    ref = ref if isinstance(ref, ModelRef) else ModelRef.parse(ref)
    if ref.adapter is None:
        return _resolve_model(ref, progress)
    base = _resolve_model(ref.model, progress)
    if is_address(ref.adapter.source):
        remote = remote_files(Address.parse(ref.adapter.source))
        with remote.named():
            return AdapterCheckpoint(ref, base, remote)
    adapter = locate(ref.adapter)
    if not adapter.is_dir():
        raise InputError(f"adapter {ref.adapter}: expected a folder with adapter_config.json; check the path")
    return AdapterCheckpoint(ref, base, LocalFiles(adapter))


def _resolve_model(ref: ModelRef, progress: Progress | None) -> Checkpoint:
    if is_address(ref.source):
        return _resolve_remote(ref, Address.parse(ref.source), progress)
    path = locate(ref)
    return as_plain(FolderCheckpoint(ref, LocalFiles(path if path.is_dir() else _folder_of_file(path, progress))))


def _resolve_remote(ref: ModelRef, address: Address, progress: Progress | None) -> Checkpoint:
    if address.name.endswith(".gguf"):
        return FolderCheckpoint(ref, LocalFiles(dequantise(fetched_file(address, progress), progress)))
    _refuse_pickle(address)
    remote = remote_files(address)
    with remote.named():
        return as_plain(FolderCheckpoint(ref, remote))


def _folder_of_file(file: Path, progress: Progress | None) -> Path:
    if file.suffix == ".gguf":
        return dequantise(file, progress)
    _refuse_pickle(file)
    raise InputError(f"{file}: neither a folder nor a .gguf file; give the folder that holds the checkpoint")


def _refuse_pickle(file: Path | Address) -> None:
    if file.name.endswith(PICKLE_ENDINGS):
        raise InputError(f"{file}: a pickle; {PICKLE_REASON}")
