"""A PEFT LoRA adapter applied to a base, computed for exactly the elements that are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.checkpoints.adapter_factors import Factors, sort_tensors
from mergebench_ray.checkpoints.adapter_options import AdapterOptions
from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.digest import tensors_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.model_files import ADAPTER_CONFIG, ModelFiles
from mergebench_ray.checkpoints.safetensors_file import read_elements
from mergebench_ray.checkpoints.weight_files import PICKLE_REASON
from mergebench_ray.config import ModelRef
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.progress import Progress, silent

_WEIGHTS_NAME = "adapter_model.safetensors"
_BLOCK_ELEMENTS = 1 << 18


class AdapterCheckpoint(Checkpoint):
    """A base with a LoRA adapter: weight + scale · B @ A, in bf16.

    The product is summed over the rank in fp32, one rank after the other and element by element, so that no bit depends
    on how a tensor is sliced; it is scaled, added to the base and rounded once. The scale is alpha / rank, or
    alpha / sqrt(rank) with `use_rslora`, and may be another for each module. With `use_dora` each row of the sum gets
    the length that the adapter has for it.

    What is stored whole beside the factors (embeddings and output head, modules to save, biases) replaces the base's; a
    module that peft has stored and wrapped is changed by its factors then.
    Embeddings and head are what the specialist is scored with, and only a merge of these parts takes them.

    Attributes:
        left_out: tensors of embeddings and head that the adapter has and this checkpoint leaves out.
    """

    def __init__(self, ref: ModelRef, base: Checkpoint, files: ModelFiles) -> None:
        """Read the adapter's configuration and header.

        Raises:
            InputError: if it is not LoRA on linear layers of this base, naming what is not.
        """
        self.ref = ref
        self.config = base.config
        self._base, self._files = base, files
        config = files.folder / ADAPTER_CONFIG
        options = AdapterOptions.of(config, read_json_object(config))
        self._stored = files.header(_weights_name(files))
        found = sort_tensors(files.folder / _WEIGHTS_NAME, self._stored, base, options)
        self._whole, self._factors, self._biases = found.whole, found.factors, found.biases
        self.left_out = found.left_out
        self.notes = [*base.notes, *_notes(self._whole, self.left_out)]
        self._has_magnitudes, self._names_parameters = options.has_magnitudes, bool(options.parameters)
        self.tensors = {
            name: dataclasses.replace(info, dtype=torch.bfloat16, shape=self._whole.get(name, info).shape)
            if info.dtype.is_floating_point
            else info
            for name, info in base.tensors.items()
        }

    @property
    def folder(self) -> Path:
        """The base's."""
        return self._base.folder

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's, where it brings a tokenizer; else the base's."""
        own = self._files.folder
        return own if (own / "tokenizer.json").is_file() else self._base.tokenizer_folder

    def fetch(self, progress: Progress = silent) -> None:
        """Have the weights of base and adapter on this node, too."""
        self._base.fetch(progress)
        self._files.fetch(progress)

    def digest(self) -> str:
        """SHA-256 of base, factors and scales."""
        scales = {one.scale for one in self._factors.values()}
        is_plain = len(scales) == 1 and not self._has_magnitudes and not self._names_parameters
        arithmetic = scales.pop() if is_plain else {name: one.scale for name, one in self._factors.items()}
        further = [] if is_plain else [self._has_magnitudes]
        return canonical_digest([self._base.digest(), tensors_digest(self._stored), arithmetic, *further])

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        factors, bias = self._factors.get(info.name), self._biases.get(info.name)
        if factors is not None and count:
            return self._changed(info, factors, start, count)
        values = self._before(info.name, start, count)
        if bias is not None:
            added, scale = bias
            values = values.float() + read_elements(added, start, count).float() * scale
        return values.to(info.dtype)

    def _before(self, name: str, start: int, count: int) -> Tensor:
        """What the adapter stores whole, else what the base has."""
        if name in self._whole:
            return read_elements(self._whole[name], start, count)
        return self._base.read(name, start, count)

    def _changed(self, info: TensorInfo, factors: Factors, start: int, count: int) -> Tensor:
        height, columns = info.shape[-2:]
        result = torch.empty(count, dtype=torch.bfloat16)
        for expert in range(start // (height * columns), -(-(start + count) // (height * columns))):
            offset = expert * height * columns
            begin, end = max(start - offset, 0), min(start + count - offset, height * columns)
            result[offset + begin - start : offset + end - start] = self._of_matrix(info, factors, expert, begin, end)
        return result

    def _of_matrix(self, info: TensorInfo, factors: Factors, expert: int, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a matrix that factors change."""
        height, columns = info.shape[-2:]
        offset = expert * height * columns
        by_columns, by_rows = factors.sides(expert)
        # The lengths of rows are those of whole ones.
        first_row, end_row = start // columns, -(-stop // columns)
        result = torch.empty(stop - start, dtype=torch.bfloat16)
        rows_per_block = max(1, _BLOCK_ELEMENTS // columns)
        for row in range(first_row, end_row, rows_per_block):
            block = range(row, min(row + rows_per_block, end_row))
            low, high = max(start, row * columns), min(stop, block.stop * columns)
            # Only DoRA needs what is beside the range.
            begin, end = (row * columns, block.stop * columns) if factors.magnitudes else (low, high)
            change = _product(by_columns, by_rows(block), factors.scale).flatten()
            changed = self._before(info.name, offset + begin, end - begin).float()
            changed += change[begin - row * columns : end - row * columns]
            if factors.magnitudes is not None:
                lengths = read_elements(factors.magnitudes, row, len(block)).float()
                changed = _with_lengths(changed.view(len(block), columns), lengths).flatten()
            result[low - start : high - start] = changed[low - begin : high - begin]
        return result


def _product(by_columns: Tensor, by_rows: Tensor, scale: float) -> Tensor:
    """Scaled product [rows, columns] of factors [rank, columns] and [rows, rank]."""
    total = torch.zeros(len(by_rows), by_columns.shape[1])
    term = torch.empty_like(total)
    for j in range(len(by_columns)):
        # Two operations, since a fused multiply-add rounds otherwise where a kernel falls back to scalars.
        torch.mul(by_rows[:, j, None], by_columns[j, None, :], out=term)
        total += term
    return total.mul_(scale)


def _with_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """Rows of these lengths; whatever is summed in which order, float64 rounds to the same float32."""
    norms = weight.double().square().sum(1).sqrt().float()
    return weight * (lengths / norms)[:, None]


def _weights_name(files: ModelFiles) -> str:
    present = files.names()
    if _WEIGHTS_NAME not in present and "adapter_model.bin" in present:
        raise InputError(f"{files.folder}: only pickled weights (adapter_model.bin); {PICKLE_REASON}")
    return _WEIGHTS_NAME


def _notes(whole: Collection[str], left_out: Collection[str]) -> list[str]:
    """A note on each kind of tensor that is no factor of a linear layer."""
    notes = [f"{', '.join(sorted(whole))} is stored beside the factors"] if whole else []
    if left_out:
        notes.append(f"{', '.join(left_out)} is left out: embeddings and output head are the base's")
    return notes
