"""A checkpoint in a folder of single or sharded safetensors files, on disk or in object storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.digest import tensors_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.model_files import ModelFiles
from mergebench_ray.checkpoints.safetensors_file import have_equal_values, read_elements, read_elements_into
from mergebench_ray.checkpoints.weight_files import refuse_other_weights, stored_tensors
from mergebench_ray.config import ModelRef
from mergebench_ray.families import family_of
from mergebench_ray.families.configuration import has_tied_head
from mergebench_ray.progress import Progress, silent


class FolderCheckpoint(Checkpoint):
    """Plain safetensors weights beside a config.json.

    Two kinds of tensors are left out of the index, as transformers leaves them out: a stored copy of the embeddings
    under the name of a head that the configuration ties to them, and rotary frequencies that older versions saved as
    buffers. A stored head that differs from the embeddings is one of its own, whatever the configuration says, and the
    configuration is corrected.
    """

    def __init__(self, ref: ModelRef, files: ModelFiles) -> None:
        """Read configuration and headers.

        Raises:
            InputError: if a file is missing, broken, a pickle, or named outside the folder.
        """
        self.ref = ref
        self._files = files
        stored, notes = stored_tensors(files)
        self.config = read_json_object(self.config_file)
        refuse_other_weights(self.folder, self.config)
        copies, own = sort_heads(stored, self.config, self.config_file, have_equal_values)
        if own:
            notes.append(
                f"{own[0]} is stored and differs from the embeddings although config.json ties them: read as an output "
                "head of its own, as transformers reads it"
            )
            self.corrected_settings = {"tie_word_embeddings": False}
            self.config = {**self.config, **self.corrected_settings}
        self.notes = notes
        family = self.family
        self.tensors = {
            name: stored[name] for name in sorted(stored) if name not in copies and not family.is_recomputed(name)
        }

    @property
    def folder(self) -> Path:
        """Where all but perhaps the weights lies on this node."""
        return self._files.folder

    def fetch(self, progress: Progress = silent) -> None:
        """Have the weights there, too."""
        self._files.fetch(progress)

    def digest(self) -> str:
        """SHA-256 of the weights; read once, then remembered until a file changes."""
        return tensors_digest(self.tensors)

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        return read_elements(info, start, count)

    def _read_range_into(self, info: TensorInfo, start: int, out: Tensor) -> None:
        if out.dtype == info.dtype:
            read_elements_into(info, start, out)
        else:
            super()._read_range_into(info, start, out)


def sort_heads(
    stored: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    file: Path,
    are_equal: Callable[[TensorInfo, TensorInfo], bool],
) -> tuple[list[str], list[str]]:
    """Stored heads of a configuration that ties its head: copies of the embeddings, and heads that differ from them.

    Args:
        stored: the tensors by name.
        config: the configuration.
        file: where it was read.
        are_equal: whether two tensors hold the same numbers in the same shape.
    """
    family = family_of(config.get("model_type"))
    heads = [info for name, info in stored.items() if family.is_output_head(name) and name.endswith("weight")]
    if not heads or not has_tied_head(config, file):
        return [], []
    tables = [info for name, info in stored.items() if family.is_token_embedding(name)]
    copies = [head.name for head in heads if any(are_equal(head, table) for table in tables)]
    return copies, [head.name for head in heads if head.name not in copies]
