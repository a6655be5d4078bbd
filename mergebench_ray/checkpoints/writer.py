"""Writing a merged model as a folder that transformers and vLLM load: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.accompanying_files import code_is_there, copy_accompanying_files
from mergebench_ray.checkpoints.chat_template import set_chat_template
from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.tensor_files import Stored, TensorFiles, write_tensors, written_dtype
from mergebench_ray.files import whole_folder
from mergebench_ray.progress import Progress

MAX_FILE_BYTES = 5 << 30
"""Most bytes of tensors a file."""

_DTYPE_KEYS = ("dtype", "torch_dtype")
_NAMES_A_FOLDER = "_name_or_path"
"""Where the base lay when somebody saved it; says nothing of the model, and may be a private path."""
_DROPPED = ("quantization_config", "compression_config", "transformers_weights", "custom_pipelines")
"""Keys that say how the base's weights were stored, or name code that no merge needs."""


def write_model(
    out: Path,
    tensors: Iterable[tuple[str, Tensor]],
    base: Checkpoint,
    card: str,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress | None = None,
    *,
    beside: Mapping[str, str] | None = None,
    written: Written | None = None,
) -> None:
    """Write a model as sharded bf16 safetensors with index, configuration, tokenizer, processors, licence and card.

    Memory is bounded by one tensor. The configuration is the base's with `use_cache` on (some fine-tuned models ship it
    switched off, which makes generation several times slower), the type of the weights, and without what says how the
    base's were quantised, where it lay, or needs code that transformers has itself.

    Args:
        out: folder to make; may exist if it is empty.
        tensors: every tensor of `base.tensors` once, in any order, flat or shaped.
        base: gives names, shapes, configuration, tokenizer and generation settings.
        card: content of README.md.
        max_file_bytes: most bytes of tensors a file.
        progress: told about the fraction written.
        beside: further texts to write, by file name.
        written: what of its files is otherwise than the base has it.

    Raises:
        InputError: if `out` exists and is not an empty folder, the disk is full, a tensor holds NaN or infinity, or a
            file of the base cannot be copied; nothing is left behind.
        ValueError: if the stream of tensors does not match the base.
    """
    with whole_folder(out) as folder:
        write_tensors(folder, written_layout(base), tensors, max_file_bytes, progress)
        write_beside(folder, base, {**(beside or {}), "README.md": card}, written or AS_THE_BASE)


@dataclass(frozen=True)
class Written:
    """How a model is written.

    Attributes:
        dtype: of its floating-point tensors.
        tokenizer: folder of another model, whose tokenizer comes along; None for the base's.
        chat_template: in the place of the tokenizer's own; None to keep that.
    """

    dtype: torch.dtype = torch.bfloat16
    tokenizer: Path | None = None
    chat_template: str | None = None


AS_THE_BASE = Written()


@contextmanager
def reserved_model(
    out: Path, base: Checkpoint, *, keep_out_of_memory: bool = False, written: Written = AS_THE_BASE
) -> Iterator[ReservedModel]:
    """A model like that of `write_model`, with the room for its tensors reserved, to be written a window at a time.

    Args:
        out: folder to make; may exist if it is empty.
        base: gives names, shapes, configuration, tokenizer and generation settings.
        keep_out_of_memory: as of `TensorFiles`.
        written: what is otherwise than the base has it.

    Raises:
        InputError: as `write_model`; nothing is left behind.
    """
    with whole_folder(out) as folder:
        layout = written_layout(base, written.dtype)
        with TensorFiles(folder, layout, MAX_FILE_BYTES, keep_out_of_memory=keep_out_of_memory) as files:
            model = ReservedModel(files)
            yield model
        write_beside(folder, base, model.texts, written)


@dataclass
class ReservedModel:
    """A model that is being written.

    Attributes:
        files: its tensors.
        texts: card and the like, by file name, which may only be known when they are written.
    """

    files: TensorFiles
    texts: Mapping[str, str] = field(default_factory=dict)


def written_layout(base: Checkpoint, dtype: torch.dtype = torch.bfloat16) -> dict[str, Stored]:
    """Shape and type of each tensor of a merge."""
    # A mask's numbers may be beyond bf16.
    return {
        name: (info.shape, info.dtype if base.family.is_buffer(name) else written_dtype(info.dtype, dtype))
        for name, info in base.tensors.items()
    }


def write_beside(folder: Path, base: Checkpoint, texts: Mapping[str, str], written: Written = AS_THE_BASE) -> None:
    """Write what lies beside the weights: the base's files, its configuration as a merge's, and further texts.

    Raises:
        InputError: a file of the base cannot be copied.
    """
    config, _ = output_config(base, written.dtype)
    copy_accompanying_files(base.folder, folder, config, written.tokenizer)
    if written.chat_template is not None:
        set_chat_template(folder, written.chat_template)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def output_config(base: Checkpoint, dtype: torch.dtype = torch.bfloat16) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a merge, and a note for each thing that is left out of the base's.

    Raises:
        InputError: the base's is of a kind that cannot be written.
    """
    config = {key: value for key, value in base.config.items() if key not in (*_DROPPED, _NAMES_A_FOLDER)}
    notes = [f"{key} is left out of the written config.json" for key in base.config if key in _DROPPED]
    if "auto_map" in config and (_is_native(config) or not code_is_there(base.folder, config)):
        del config["auto_map"]
        notes.append("auto_map is left out of the written config.json; transformers' own classes load the model")
    name = str(dtype).removeprefix("torch.")
    config = {key: _with_dtype(value, name) if isinstance(value, dict) else value for key, value in config.items()}
    # The name that the base's version of transformers uses.
    if not any(key in config for key in _DTYPE_KEYS):
        config["dtype"] = ""
    return {**_with_dtype(config, name), "use_cache": True}, notes


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration, or one nested in it, that says so wherever it names a type of the weights."""
    kept = {key: value for key, value in config.items() if key not in (*_DROPPED, _NAMES_A_FOLDER)}
    return {**kept, **{key: dtype for key in _DTYPE_KEYS if key in kept}}


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers has this model type without the code that `auto_map` names."""
    from transformers import CONFIG_MAPPING

    return str(config.get("model_type")) in CONFIG_MAPPING
