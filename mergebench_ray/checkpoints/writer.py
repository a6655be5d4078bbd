"""Writing a merged model as a folder that transformers and vLLM load: whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, Progress
from mergebench_ray.checkpoints.tensor_files import write_tensors
from mergebench_ray.files import whole_folder

_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_FURTHER_TEMPLATES = "additional_chat_templates"


def write_model(
    out: Path,
    tensors: Iterable[tuple[str, Tensor]],
    base: Checkpoint,
    card: str,
    max_file_bytes: int = 5 << 30,
    progress: Progress | None = None,
) -> None:
    """Write a model as sharded bf16 safetensors with index, configuration, tokenizer, chat template and card.

    Memory is bounded by one tensor. The configuration is the base's with `use_cache` on (some fine-tuned models ship it
    switched off, which makes generation several times slower) and the type of the weights.

    Args:
        out: folder to make; may exist if it is empty.
        tensors: every tensor of `base.tensors` once, in any order, flat or shaped.
        base: gives names, shapes, configuration, tokenizer and generation settings.
        card: content of README.md.
        max_file_bytes: most bytes of tensors a file.
        progress: told about the fraction written.

    Raises:
        InputError: if `out` exists and is not an empty folder, or the disk is full; nothing is left behind.
        ValueError: if the stream of tensors does not match the base.
    """
    with whole_folder(out) as folder:
        shapes = {name: info.shape for name, info in base.tensors.items()}
        write_tensors(folder, shapes, tensors, max_file_bytes, progress)
        for name in _COPIED:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, folder / name)
        if (base.folder / _FURTHER_TEMPLATES).is_dir():
            shutil.copytree(base.folder / _FURTHER_TEMPLATES, folder / _FURTHER_TEMPLATES)
        config = json.dumps(_output_config(base.config), indent=2, sort_keys=True)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def _output_config(config: dict[str, Any]) -> dict[str, Any]:
    """The base's configuration for bf16 weights, under the name that its version of transformers uses for the type."""
    dtype_key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, "use_cache": True, dtype_key: "bfloat16"}
