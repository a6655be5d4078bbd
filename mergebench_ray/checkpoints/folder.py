"""A checkpoint in a folder of single or sharded safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo, is_output_head
from mergebench_ray.checkpoints.digest import tensors_digest
from mergebench_ray.checkpoints.safetensors_file import read_elements, read_header
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_REASON = "loading a pickle runs any code it holds, so it is refused; save the model as safetensors"


class FolderCheckpoint(Checkpoint):
    """Plain safetensors weights beside a config.json.

    Two kinds of tensors are left out of the index, as transformers leaves them out: a stored copy of a head that the
    configuration ties to the embeddings, and rotary frequencies that older versions saved as buffers.
    """

    def __init__(self, ref: ModelRef, folder: Path) -> None:
        """Read configuration and headers.

        Raises:
            InputError: if a file is missing, broken, a pickle, or named outside the folder.
        """
        self.ref = ref
        self.folder = folder
        stored = _stored_tensors(folder)
        self.config = read_json_object(folder / "config.json")
        tied = has_tied_head(self.config)
        self.tensors = {
            name: stored[name]
            for name in sorted(stored)
            if not (tied and is_output_head(name)) and not name.endswith("rotary_emb.inv_freq")
        }

    def digest(self) -> str:
        """SHA-256 of the weights; read once, then remembered until a file changes."""
        return tensors_digest(self.tensors)

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        return read_elements(info, start, count)


def has_tied_head(config: dict[str, Any]) -> bool:
    """Whether a configuration ties the output head to the embeddings (Gemma's leaves its default, true, unsaid)."""
    default = str(config.get("model_type", "")).startswith("gemma")
    return bool(config.get("tie_word_embeddings", default))


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: this file of the checkpoint is missing; add it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); mend or fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object; mend or fetch the file again")
    return content


def _stored_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of all weight files; files may be links (the hub's cache is made of them), names may not lead out."""
    if not (folder / INDEX_NAME).is_file():
        return read_header(_single_file(folder))
    weight_map = _weight_map(folder / INDEX_NAME)
    stored: dict[str, TensorInfo] = {}
    for file_name in sorted(set(weight_map.values())):
        for name, info in read_header(folder / file_name).items():
            if name in stored:
                raise InputError(
                    f"{folder}: tensor {name!r} is in {stored[name].file.name} and in {file_name}; keep one"
                )
            stored[name] = info
    for name, file_name in weight_map.items():
        if name not in stored or stored[name].file.name != file_name:
            raise InputError(f"{folder / INDEX_NAME}: {file_name} holds no tensor {name!r}; fetch the checkpoint again")
    return stored


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: 'weight_map' is missing or empty; fetch the checkpoint again")
    for name, file_name in weight_map.items():
        if not _is_plain_name(file_name):
            raise InputError(
                f"{index}: tensor {name!r} is said to be in {file_name!r}, outside the folder; don't use it"
            )
        if not file_name.endswith(".safetensors"):
            raise InputError(f"{index}: {file_name!r} is not a safetensors file; {PICKLE_REASON}")
    return weight_map


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", "..") and "\0" not in name and Path(name).name == name


def _single_file(folder: Path) -> Path:
    if (folder / SINGLE_NAME).is_file():
        return folder / SINGLE_NAME
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds an adapter, not a model; write BASE+{folder}")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(f"{folder}: {len(files)} safetensors files but no {INDEX_NAME}; fetch the index too")
    pickles = sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLE_ENDINGS))
    if pickles:
        raise InputError(f"{folder}: only pickled weights ({pickles[0]}); {PICKLE_REASON}")
    raise InputError(
        f"{folder}: no safetensors weights in this folder (pickled ones are never fetched); check the path"
    )
