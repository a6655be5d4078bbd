"""A checkpoint in a folder of single or sharded safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo, is_output_head
from mergebench_ray.checkpoints.digest import tensors_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.safetensors_file import read_elements
from mergebench_ray.checkpoints.weight_files import refuse_other_weights, stored_tensors
from mergebench_ray.config import ModelRef


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
        stored, self.notes = stored_tensors(folder)
        self.config = read_json_object(folder / "config.json")
        refuse_other_weights(folder, self.config)
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
