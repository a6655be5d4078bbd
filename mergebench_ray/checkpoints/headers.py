"""Headers alone, for whoever plans: of models that are here, ship as shapes, or lie on the hub or in object storage."""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.dequantising import find_packed, without_quantisation
from mergebench_ray.checkpoints.dequantising.packed_weight import UnreadableError
from mergebench_ray.checkpoints.file_state import FileState
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.model_files import CONFIG_NAME, remote_files
from mergebench_ray.checkpoints.resolving import resolve
from mergebench_ray.checkpoints.safetensors_file import DTYPES
from mergebench_ray.checkpoints.sources import explained_hub_errors, is_fetched, is_on_hub
from mergebench_ray.checkpoints.weight_files import refuse_other_weights, stored_tensors
from mergebench_ray.config import ModelRef
from mergebench_ray.config.yaml_files import read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from mergebench_ray.families.configuration import has_tied_head, tensor_shapes
from mergebench_ray.object_storage.address import Address, is_address
from mergebench_ray.progress import Progress, silent

_SHAPES = Path(__file__).with_name("shapes.yaml")
_NO_FILE = FileState(host="", size=0, inode=0, modified=0, changed=0)

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class HeaderCheckpoint(Checkpoint):
    """A checkpoint whose weights are not on this machine: names, shapes and configuration, nothing to read.

    A stored copy of the embeddings, as a head that the configuration ties to them, is left out.

    Args:
        ref: the reference.
        config: content of its config.json.
        shapes: name -> shape and type of each tensor.
    """

    def __init__(self, ref: ModelRef, config: Mapping[str, Any], shapes: Shapes) -> None:
        self.ref = ref
        stored = {
            name: TensorInfo(name, shape, dtype, self.folder, 0, _NO_FILE) for name, (shape, dtype) in shapes.items()
        }
        try:
            found = find_packed(config, self.config_file, stored)
        except UnreadableError:
            found = None  # whoever merges it says so
        if found is not None:
            self.notes = [found.note]
            plain = {name: info for name, info in stored.items() if name not in found.stored}
            stored = plain | {weight.name: weight.info for weight in found.weights}
        self.config = dict(config) if found is None else without_quantisation(config)
        family = family_of(self.config.get("model_type"))
        tied = has_tied_head(self.config, self.config_file)
        self.tensors = {
            name: info
            for name, info in sorted(stored.items())
            if not family.is_recomputed(name) and not (tied and family.is_output_head(name))
        }

    @property
    def folder(self) -> Path:
        """Of no folder; for messages alone."""
        return Path(str(self.ref))

    def fetch(self, progress: Progress = silent) -> None:
        """There is nothing to fetch for whoever plans."""

    def digest(self) -> str:
        """Nobody knows it before the weights are here.

        Raises:
            InputError: always.
        """
        raise InputError(f"model {self.ref}: its weights are not on this machine")

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        raise InputError(f"model {self.ref}: its weights are not on this machine")


def resolve_headers(ref: ModelRef | str) -> Checkpoint:
    """Find a checkpoint without fetching weights.

    A model of this machine, the hub's cache included, is what `resolve` finds. Else MergeBench's are known by shapes
    that come with this package, and of others configuration and headers are asked of the hub, or of object storage, by
    ranges of bytes. A GGUF file is fetched, as its shapes are those of what transformers makes of it.

    Raises:
        InputError: as `resolve`.
    """
    ref = ref if isinstance(ref, ModelRef) else ModelRef.parse(ref)
    if is_here(ref):
        return resolve(ref)
    if ref.adapter is not None:
        # What is merged has its base's shapes.
        base = resolve_headers(ref.model)
        shapes = {name: (info.shape, info.dtype) for name, info in base.tensors.items()}
        return HeaderCheckpoint(ref, base.config, shapes)
    if is_address(ref.source):
        return _in_storage(ref)
    config = shipped_config(ref.hub_id)
    if config is not None:
        return HeaderCheckpoint(ref, config, _shapes_of(json.dumps(config)))
    return _on_hub(ref)


def is_here(ref: ModelRef) -> bool:
    """Whether nothing that a reference names, its adapter included, would have to be fetched."""
    return all(one is None or _is_here(one) for one in (ref.model, ref.adapter))


def _is_here(ref: ModelRef) -> bool:
    if is_address(ref.source):
        address = Address.parse(ref.source)
        return address.name.endswith(".gguf") or remote_files(address).are_here()
    return not is_on_hub(ref) or is_fetched(ref)


def shipped_config(source: str) -> dict[str, Any] | None:
    """What comes with this package of a hub model's config.json; None for other models."""
    for row in _shipped():
        if any(fnmatch.fnmatchcase(source, pattern) for pattern in row["models"]):
            return {**row["config"], "dtype": "bfloat16"}
    return None


@functools.cache
def _shipped() -> list[Any]:
    return list(read_yaml(_SHAPES).values())


@functools.cache
def _shapes_of(config: str) -> Shapes:
    return {name: (shape, torch.bfloat16) for name, shape in tensor_shapes(json.loads(config), _SHAPES).items()}


def _in_storage(ref: ModelRef) -> Checkpoint:
    """Configuration and headers, a few ranges of bytes."""
    remote = remote_files(Address.parse(ref.source), headers_only=True)
    with remote.named():
        stored, _ = stored_tensors(remote, compare=False)
        config = read_json_object(remote.folder / CONFIG_NAME)
        refuse_other_weights(remote.folder, config)
        return HeaderCheckpoint(ref, config, {name: (info.shape, info.dtype) for name, info in stored.items()})


def _on_hub(ref: ModelRef) -> Checkpoint:
    """Configuration and headers, a few ranges of bytes."""
    from huggingface_hub import errors, get_safetensors_metadata, hf_hub_download

    try:
        with explained_hub_errors(ref):
            config = read_json_object(Path(hf_hub_download(ref.hub_id, "config.json", revision=ref.revision)))
            metadata = get_safetensors_metadata(ref.hub_id, revision=ref.revision)
    except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        raise InputError(f"model {ref}: has no safetensors that can be read ({error}); give another") from error
    shapes = {
        name: (tuple(info.shape), DTYPES.get(info.dtype, torch.bfloat16))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }
    return HeaderCheckpoint(ref, config, shapes)
