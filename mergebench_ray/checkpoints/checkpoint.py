"""What a checkpoint is to the rest of the package: names, shapes and byte-range reads, no weights held."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from mergebench_ray.checkpoints.file_state import FileState
from mergebench_ray.config import MergedParts, ModelRef
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily, family_of
from mergebench_ray.families.configuration import num_layers
from mergebench_ray.object_storage.fetched import RemoteFile
from mergebench_ray.progress import Progress, silent


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it.

    Attributes:
        name: name in the checkpoint.
        shape: shape of the whole tensor.
        dtype: type that `Checkpoint.read` returns.
        file: file that holds the stored bytes.
        offset: position of the first stored byte in that file.
        state: what that file was when its header was read; of object storage, the object and where its copies are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path = field(repr=False)
    offset: int = field(repr=False)
    state: FileState | RemoteFile = field(repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(prod(self.shape))

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * int(self.dtype.itemsize)

    @property
    def bytes_to_fetch(self) -> int:
        """Size of its file where that is in object storage and not on this node yet: whoever reads it fetches it."""
        if isinstance(self.state, RemoteFile) and not self.state.folder.is_here(self.state.name):
            return self.state.seen.size
        return 0


class Checkpoint(ABC):
    """A model on disk or in object storage, known by its headers and configuration only.

    Instances hold no weights and no open files: they can be pickled and sent to the actors that read their own part.
    All methods may be called from several threads at once.

    Attributes:
        ref: the reference it was resolved from.
        config: content of its config.json.
        tensors: the tensors by name, sorted.
        corrected_settings: what `config` says otherwise than the folder's config.json, since the weights show it.
        notes: what was decided where the files left a choice, a line each.
        merged_parts: of a base, which of its parts are merged.
    """

    ref: ModelRef
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    notes: Sequence[str] = ()
    merged_parts: MergedParts = MergedParts()
    corrected_settings: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where configuration and tokenizer lie on this node."""

    @property
    def tokenizer_folder(self) -> Path:
        """Where the files lie that say how this model reads texts; `folder` but for some adapters."""
        return self.folder

    def plain_folder(self, progress: Progress = silent) -> Path:
        """A folder of this node with all of a model's files, its weights plain, for whoever starts from a folder.

        Raises:
            InputError: as `fetch`; or quantised weights, of which a plain copy is made, are damaged.
        """
        self.fetch(progress)
        return self.folder

    @abstractmethod
    def fetch(self, progress: Progress = silent) -> None:
        """Have all of a model's files on this node, for whoever reads its folder; most are there already.

        What reads the checkpoint itself need not ask: it fetches the files that it reads.

        Raises:
            InputError: one was replaced, or cannot be fetched.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the weights (names, types, shapes, bytes), the same however they are split over files."""

    @abstractmethod
    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a flattened tensor; the range is known to be inside."""

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Read a slice of a flattened tensor.

        Args:
            name: name of the tensor.
            start: first element.
            count: number of elements; None for all that follow.

        Returns:
            CPU tensor of shape [count] in the dtype of `tensors[name]`. Bits do not depend on how a tensor is sliced.

        Raises:
            KeyError: if there is no such tensor.
            ValueError: if the slice leaves the tensor.
            InputError: if the file has changed since its header was read.
        """
        info = self.tensors[name]
        count = info.numel - start if count is None else count
        _require_inside(info, start, count)
        return self._read_range(info, start, count)

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Read the elements [start, start + len(out)) of a flattened tensor into memory that is there already.

        Args:
            name: name of the tensor.
            start: first element.
            out: contiguous CPU tensor [n] of any floating-point type, to which the elements are rounded.

        Raises:
            KeyError, ValueError, InputError: as `read`.
        """
        info = self.tensors[name]
        _require_inside(info, start, len(out))
        self._read_range_into(info, start, out)

    def _read_range_into(self, info: TensorInfo, start: int, out: Tensor) -> None:
        out.copy_(self._read_range(info, start, len(out)))

    @property
    def config_file(self) -> Path:
        """Where `config` was read."""
        return self.folder / "config.json"

    @property
    def family(self) -> ModelFamily:
        """What the names of its tensors mean."""
        return family_of(self.config.get("model_type"))

    def merging(self, parts: MergedParts) -> Self:
        """The same model as the base of a merge of these parts."""
        base = copy.copy(self)
        base.merged_parts = parts
        return base

    def is_merged(self, name: str) -> bool:
        """Whether a merge into this base merges a tensor of this name."""
        return self.family.is_merged(name, self.merged_parts)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(info.numel for info in self.tensors.values())

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest tensor."""
        return max((info.numel for info in self.tensors.values()), default=0)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers.

        Raises:
            InputError: if the configuration does not say.
        """
        return num_layers(self.config, self.config_file)

    def __str__(self) -> str:
        return str(self.ref)


def read_in_shape_of(base: Checkpoint, checkpoint: Checkpoint, name: str, start: int, count: int) -> Tensor:
    """Elements [start, start + count) of a tensor as the base has it, in bf16; rows that it lacks are the base's."""
    values = torch.empty(count, dtype=torch.bfloat16)
    fill_in_shape_of(base, checkpoint, name, start, values)
    return values


def fill_in_shape_of(base: Checkpoint, checkpoint: Checkpoint, name: str, start: int, out: Tensor) -> None:
    """Read a tensor's elements as `read_in_shape_of` does into contiguous bf16 [n] that is there already.

    Rows that only the specialist has come after all that can be asked for.
    """
    own = max(0, min(len(out), checkpoint.tensors[name].numel - start))
    if own:
        checkpoint.read_into(name, start, out[:own])
    if own < len(out):
        base.read_into(name, start + own, out[own:])


def _require_inside(info: TensorInfo, start: int, count: int) -> None:
    if start < 0 or count < 0 or start + count > info.numel:
        raise ValueError(f"{info.name}: slice [{start}, {start + count}) leaves a tensor of {info.numel} elements")


def require_finite(where: Checkpoint | Path, name: str, values: Tensor) -> None:
    """Refuse NaN and infinity in weights that were read from a checkpoint or file.

    Raises:
        InputError: naming it and the tensor.
    """
    if not is_finite(values):
        raise InputError(f"{where}: tensor {name!r} holds NaN or infinity; use a checkpoint with finite weights")


def is_finite(values: Tensor) -> bool:
    """Whether a tensor of any type holds neither NaN nor infinity."""
    if not values.dtype.is_floating_point or values.numel() == 0:
        return True
    # One pass without temporaries, which isfinite makes; both ends are NaN where any entry is. No such pass for fp8.
    ends = torch.stack(torch.aminmax(values if values.dtype.itemsize > 1 else values.float()))
    return bool(torch.isfinite(ends).all())
