"""What a checkpoint is to the rest of the package: names, shapes and byte-range reads, no weights held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError

Progress = Callable[[float, str], None]
"""Receives the fraction done (0 to 1) and one line of text."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it.

    Attributes:
        name: name in the checkpoint.
        shape: shape of the whole tensor.
        dtype: type that `Checkpoint.read` returns.
        file: file that holds the stored bytes.
        offset: position of the first stored byte in that file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path = field(repr=False)
    offset: int = field(repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(prod(self.shape))

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * int(self.dtype.itemsize)


class Checkpoint(ABC):
    """A model on disk, known by its headers and configuration only.

    Instances hold no weights and no open files: they can be pickled and sent to the actors that read their own part.
    All methods may be called from several threads at once.

    Attributes:
        ref: the reference it was resolved from.
        folder: where configuration and tokenizer lie.
        config: content of its config.json.
        tensors: the tensors by name, sorted.
    """

    ref: ModelRef
    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

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
            InputError: if the file has become shorter since its header was read.
        """
        info = self.tensors[name]
        count = info.numel - start if count is None else count
        if start < 0 or count < 0 or start + count > info.numel:
            raise ValueError(f"{name}: slice [{start}, {start + count}) leaves a tensor of {info.numel} elements")
        return self._read_range(info, start, count)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers.

        Raises:
            InputError: if the configuration does not say.
        """
        layers = self.config.get("num_hidden_layers")
        if not isinstance(layers, int) or layers < 1:
            raise InputError(f"{self.folder / 'config.json'}: num_hidden_layers is missing or not a whole number >= 1")
        return layers

    def __str__(self) -> str:
        return str(self.ref)


def is_merged(name: str) -> bool:
    """Whether a tensor is merged: neither an embedding nor the output head (both come from the base)."""
    return "embed" not in name and not is_output_head(name)


def is_output_head(name: str) -> bool:
    """Whether a tensor belongs to an output head of its own (untied from the embeddings)."""
    return "lm_head" in name.split(".")


def counts_for_threshold(name: str) -> bool:
    """Whether a tensor's entries count for global thresholds: all without `embed`, so an untied head counts."""
    return "embed" not in name


def require_finite(checkpoint: Checkpoint, name: str, values: Tensor) -> None:
    """Refuse NaN and infinity in weights that were read.

    Raises:
        InputError: naming checkpoint and tensor.
    """
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{checkpoint}: tensor {name!r} holds NaN or infinity; use a checkpoint with finite weights")
