"""The one way in: from a reference to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.checkpoints.adapter import AdapterCheckpoint
from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.folder import FolderCheckpoint
from mergebench_ray.checkpoints.gguf import dequantise
from mergebench_ray.checkpoints.sources import locate
from mergebench_ray.checkpoints.weight_files import PICKLE_ENDINGS, PICKLE_REASON
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError
from mergebench_ray.progress import Progress


def resolve(ref: ModelRef | str, *, progress: Progress | None = None) -> Checkpoint:
    """Find a checkpoint and read its headers; no weights are loaded.

    A hub model is fetched (or found in the local cache when `HF_HUB_OFFLINE` is set), a GGUF file is dequantised into
    the cache once. `$MERGEBENCH_RAY_CACHE` names the cache folder, `~/.cache/mergebench_ray` otherwise.

    Args:
        ref: any form of `ModelRef`.
        progress: told about steps that take longer than a moment.

    Raises:
        InputError: in one line, if it cannot be found, is broken, or is of a kind that is refused (pickles).
    """
    ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
    if ref.adapter is None:
        return _resolve_model(ref, progress)
    base = _resolve_model(ref.model, progress)
    adapter = locate(ref.adapter)
    if not adapter.is_dir():
        raise InputError(f"adapter {ref.adapter}: expected a folder with adapter_config.json; check the path")
    return AdapterCheckpoint(ref, base, adapter)


def _resolve_model(ref: ModelRef, progress: Progress | None) -> Checkpoint:
    path = locate(ref)
    return FolderCheckpoint(ref, path if path.is_dir() else _folder_of_file(path, progress))


def _folder_of_file(file: Path, progress: Progress | None) -> Path:
    if file.suffix == ".gguf":
        return dequantise(file, progress)
    if file.name.endswith(PICKLE_ENDINGS):
        raise InputError(f"{file}: a pickle; {PICKLE_REASON}")
    raise InputError(f"{file}: neither a folder nor a .gguf file; give the folder that holds the checkpoint")
