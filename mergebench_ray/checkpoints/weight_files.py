"""Which files of a folder hold a model's weights, where there may be two answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.model_files import ADAPTER_CONFIG, CONFIG_NAME, INDEX_NAME, SAFETENSORS, ModelFiles
from mergebench_ray.checkpoints.safetensors_file import have_equal_values
from mergebench_ray.errors import InputError

SINGLE_NAME = "model.safetensors"
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_REASON = "loading a pickle runs any code it holds, so it is refused; save the model as safetensors"
# Names under which other programs keep a model's weights, so a reader may take them for this model's.
_OTHER_WEIGHTS = ("pytorch_model*.bin", "consolidated*.pt*", "tf_model*.h5", "flax_model*.msgpack", "*.gguf")


def stored_tensors(files: ModelFiles, *, compare: bool = True) -> tuple[dict[str, TensorInfo], list[str]]:
    """The tensors of the files that transformers and vLLM both read, and a note for weights that neither does.

    Files may be links (the hub's cache is made of them); names may not lead out of the folder.

    Args:
        files: of the model.
        compare: read tensors that are there twice, and refuse them where they differ.

    Raises:
        InputError: no weights; or which files hold them is ambiguous; or one of them is broken.
    """
    folder, present = files.folder, files.names()
    if ADAPTER_CONFIG in present and {SINGLE_NAME, INDEX_NAME} & present:
        raise InputError(
            f"{folder}: holds a model and an adapter, which transformers would apply to it; "
            f"move the adapter to a folder of its own and write MODEL+ADAPTER where it is meant"
        )
    if INDEX_NAME in present:
        weight_map = _weight_map(folder / INDEX_NAME)
        read = set(weight_map.values())
        if SINGLE_NAME in present and read != {SINGLE_NAME}:
            raise InputError(
                f"{folder}: {SINGLE_NAME} lies beside an index that names other files ({min(read)}): transformers "
                f"reads the one, vLLM the others; remove what is of an earlier save"
            )
        tensors = _sharded(files, weight_map, compare)
    else:
        name = _single_file(folder, present)
        read = {name}
        tensors = files.header(name)
    return tensors, _notes(present, read)


def refuse_other_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that names the file of its weights, which transformers obeys and vLLM does not know.

    Raises:
        InputError: if it does.
    """
    named = config.get("transformers_weights")
    if named not in (None, SINGLE_NAME, INDEX_NAME):
        raise InputError(
            f"{folder / CONFIG_NAME}: transformers_weights names {named!r}, which vLLM would not read; "
            f"save the weights as {SINGLE_NAME}"
        )


def _single_file(folder: Path, present: Iterable[str]) -> str:
    if ADAPTER_CONFIG in present:
        raise InputError(f"{folder}: holds an adapter, not a model; write BASE+{folder}")
    files = sorted(name for name in present if name.endswith(SAFETENSORS))
    if len(files) == 1:
        return files[0]
    if SINGLE_NAME in files:
        others = ", ".join(name for name in files if name != SINGLE_NAME)
        raise InputError(
            f"{folder}: transformers reads {SINGLE_NAME}, vLLM also {others}; move what is not the model elsewhere"
        )
    if files:
        raise InputError(f"{folder}: {len(files)} safetensors files but no {INDEX_NAME}; fetch the index too")
    pickles = sorted(name for name in present if name.endswith(PICKLE_ENDINGS))
    if pickles:
        raise InputError(f"{folder}: only pickled weights ({pickles[0]}); {PICKLE_REASON}")
    inside = sorted(entry.parent.name for entry in folder.glob("*/config.json"))
    hint = f"; {folder / inside[0]} holds a model" if inside else ""
    raise InputError(
        f"{folder}: no safetensors weights in this folder (pickled ones are never fetched){hint}; check the path"
    )


def _notes(present: Iterable[str], read: set[str]) -> list[str]:
    """A line for weights that are not read, and for weights that transformers would not find by itself."""
    other = sorted(
        name
        for name in present
        if name not in read and (name.endswith(SAFETENSORS) or any(fnmatch(name, one) for one in _OTHER_WEIGHTS))
    )
    notes = [f"{', '.join(other)} lies there too and is not read"] if other else []
    if len(read) == 1 and INDEX_NAME not in present and SINGLE_NAME not in read:
        notes.append(f"the weights are those of {min(read)}, the only file of its kind there")
    return notes


def _sharded(files: ModelFiles, weight_map: Mapping[str, str], compare: bool) -> dict[str, TensorInfo]:
    folder = files.folder
    stored: dict[str, TensorInfo] = {}
    for file_name in sorted(set(weight_map.values())):
        for name, info in files.header(file_name).items():
            if name in stored and compare:
                _refuse_unless_equal(folder, stored[name], info)
            if name not in stored or weight_map.get(name) == file_name:
                stored[name] = info
    for name, file_name in weight_map.items():
        if name not in stored or stored[name].file.name != file_name:
            raise InputError(f"{folder / INDEX_NAME}: {file_name} holds no tensor {name!r}; fetch the checkpoint again")
    return stored


def _refuse_unless_equal(folder: Path, one: TensorInfo, other: TensorInfo) -> None:
    """Two copies of a tensor are harmless if it doesn't matter which is read."""
    equal = one.dtype == other.dtype and have_equal_values(one, other)
    if not equal:
        raise InputError(
            f"{folder}: tensor {one.name!r} is in {one.file.name} and in {other.file.name}, and they differ; keep one"
        )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: 'weight_map' is missing or empty; fetch the checkpoint again")
    for name, file_name in weight_map.items():
        if not _is_plain_name(file_name):
            raise InputError(
                f"{index}: tensor {name!r} is said to be in {file_name!r}, outside the folder; don't use it"
            )
        if not file_name.endswith(SAFETENSORS):
            raise InputError(f"{index}: {file_name!r} is not a safetensors file; {PICKLE_REASON}")
    return weight_map


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", "..") and "\0" not in name and Path(name).name == name
