"""Models that are in memory already: read like those on disk, and merged to tensors instead of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo, require_finite
from mergebench_ray.checkpoints.file_state import FileState
from mergebench_ray.checkpoints.folder import sort_heads
from mergebench_ray.checkpoints.safetensors_file import bytes_of
from mergebench_ray.checkpoints.tensor_files import as_written
from mergebench_ray.checkpoints.writer import written_layout
from mergebench_ray.config import ModelRef
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.progress import Progress, silent

_NO_FOLDER = Path("/dev/null/in-memory")
"""Where nothing can be: no tokenizer to compare, no code to run."""
_NO_STATE = FileState("", 0, 0, 0, 0)


@dataclass(frozen=True)
class TensorInMemory(TensorInfo):
    """A tensor of a state dict.

    Attributes:
        values: it, flat.
    """

    values: Tensor = field(repr=False, compare=False)


class MemoryCheckpoint(Checkpoint):
    """A state dict, read where it is: nothing is copied but what is on a GPU or not contiguous, and nothing changed.

    As of a folder, a copy of the embeddings under the name of a tied head, and what is computed again, are left out.

    Args:
        name: what it is, for messages.
        state: its tensors by name.
        config: content of its config.json.

    Raises:
        InputError: something in the state dict is no tensor, is sparse, or has no values.
    """

    def __init__(self, name: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.ref, self.config = ModelRef(f"{name}, in memory"), dict(config)
        found = {key: _info(name, key, state[key]) for key in sorted(state)}
        self.tied_heads, own = sort_heads(found, self.config, self.config_file, _are_equal)
        if own:
            self.corrected_settings = {"tie_word_embeddings": False}
            self.config |= self.corrected_settings
            self.notes = [
                f"{own[0]} differs from the embeddings although the configuration ties them: a head of its own"
            ]
        self.tensors = {
            key: info
            for key, info in found.items()
            if key not in self.tied_heads and not self.family.is_recomputed(key)
        }

    @property
    def folder(self) -> Path:
        """Where nothing is."""
        return _NO_FOLDER

    @property
    def config_file(self) -> Path:
        """What messages about the configuration name."""
        return Path("config")

    def fetch(self, progress: Progress = silent) -> None:
        """Nothing: it is here."""

    def digest(self) -> str:
        """SHA-256 of the weights, that of the same weights in files."""
        found = []
        for name, info in self.tensors.items():
            values = self.read(name)
            require_finite(self, name, values)
            digest = hashlib.sha256(bytes_of(values) if len(values) else b"").hexdigest()
            found.append([name, str(info.dtype), list(info.shape), digest])
        return canonical_digest(found)

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        assert isinstance(info, TensorInMemory)
        return info.values[start : start + count].to("cpu", copy=True)

    def _read_range_into(self, info: TensorInfo, start: int, out: Tensor) -> None:
        assert isinstance(info, TensorInMemory)
        out.copy_(info.values[start : start + len(out)])


class MergedInMemory:
    """Where a merge goes that is not written: takes what `TensorFiles` takes.

    Args:
        base: says which tensors there will be.

    Attributes:
        tensors: by name, on the CPU.
    """

    def __init__(self, base: Checkpoint) -> None:
        self.tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in written_layout(base).items()}

    def write(self, name: str, first: int, values: Tensor) -> int:
        """Take the elements of a tensor from `first` on; as `TensorFiles.write`."""
        tensor = self.tensors[name]
        found = as_written(name, values, tensor.dtype)
        tensor.view(-1)[first : first + len(found)] = found
        return found.nbytes


def _info(model: str, name: str, tensor: Tensor) -> TensorInMemory:
    if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
        what = "has no values" if isinstance(tensor, Tensor) else f"is no tensor but of type {type(tensor).__name__}"
        raise InputError(f"{model}: {name!r} {what}; give a state dict of a model that is loaded")
    if tensor.layout is not torch.strided:
        raise InputError(f"{model}: {name!r} is sparse; give it as tensor.to_dense()")
    values = tensor.detach().reshape(-1)
    return TensorInMemory(name, tuple(tensor.shape), tensor.dtype, Path(model), 0, _NO_STATE, values)


def _are_equal(one: TensorInfo, other: TensorInfo) -> bool:
    assert isinstance(one, TensorInMemory) and isinstance(other, TensorInMemory)  # noqa: PT018
    return one.shape == other.shape and torch.equal(one.values, other.values.to(one.values))
