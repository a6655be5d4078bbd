"""A PEFT LoRA adapter applied to a base, computed for exactly the elements that are asked for.

Shapes: a linear layer's weight is [out, in], its adapter's factors are A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.checkpoints.adapter_options import REMEDY, AdapterOptions
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
_PREFIX = "base_model.model."
# What peft calls a module that it saves whole, and one that it wraps.
_WITHIN = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_OF_EMBEDDINGS = re.compile(r"\.lora_embedding_[AB]$|\.token_adapter\.\w+$")
_MAGNITUDES = re.compile(r"\.lora_magnitude_vector(?:\.weight)?$")


@dataclasses.dataclass(frozen=True)
class _Factors:
    """What changes a weight [rows, columns].

    Attributes:
        a: [rank, columns], or [rank, rows] where the weight is stored transposed.
        b: [rows, rank], or [columns, rank].
        magnitudes: length of each row, [rows]; None where rows keep the length that they get.
        is_transposed: whether the weight is stored [in, out].
        scale: what the product is multiplied with.
    """

    a: TensorInfo
    b: TensorInfo
    magnitudes: TensorInfo | None
    scale: float
    is_transposed: bool


class AdapterCheckpoint(Checkpoint):
    """A base with a LoRA adapter: weight + scale · B @ A, in bf16.

    The product is summed over the rank in fp32, one rank after the other and element by element, so that no bit depends
    on how a tensor is sliced; it is scaled, added to the base and rounded once. The scale is alpha / rank, or
    alpha / sqrt(rank) with `use_rslora`, and may be another for each module. With `use_dora` each row of the sum gets
    the length that the adapter has for it.

    What is stored whole beside the factors (embeddings and output head, modules to save, biases) replaces the base's.
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
        weights = files.folder / _WEIGHTS_NAME
        self._whole, factors, self.left_out = _sort_tensors(weights, self._stored, base, options)
        self.notes = [*base.notes, *_notes(self._whole, self.left_out)]
        self._factors = _pair_factors(weights, factors, base, options)
        for name in self._whole.keys() & self._factors.keys():
            raise InputError(f"{weights}: holds {name!r} whole and factors for it; {REMEDY}")
        self._has_magnitudes = options.has_magnitudes
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
        is_plain = len(scales) == 1 and not self._has_magnitudes
        arithmetic = scales.pop() if is_plain else {name: one.scale for name, one in self._factors.items()}
        further = [] if is_plain else [self._has_magnitudes]
        return canonical_digest([self._base.digest(), tensors_digest(self._stored), arithmetic, *further])

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        if info.name in self._whole:
            return read_elements(self._whole[info.name], start, count).to(info.dtype)
        factors = self._factors.get(info.name)
        if factors is None or count == 0:
            return self._base.read(info.name, start, count).to(info.dtype)
        columns = info.shape[1]
        by_columns, by_rows = self._sides(factors)
        # The lengths of rows are those of whole ones.
        first_row, end_row = start // columns, -(-(start + count) // columns)
        result = torch.empty(count, dtype=torch.bfloat16)
        rows_per_block = max(1, _BLOCK_ELEMENTS // columns)
        for row in range(first_row, end_row, rows_per_block):
            block = range(row, min(row + rows_per_block, end_row))
            low, high = max(start, row * columns), min(start + count, block.stop * columns)
            # Only DoRA needs what is beside the range.
            begin, end = (row * columns, block.stop * columns) if factors.magnitudes else (low, high)
            change = _product(by_columns, by_rows(block), factors.scale).flatten()
            changed = self._base.read(info.name, begin, end - begin).float()
            changed += change[begin - row * columns : end - row * columns]
            if factors.magnitudes is not None:
                lengths = read_elements(factors.magnitudes, row, len(block)).float()
                changed = _with_lengths(changed.view(len(block), columns), lengths).flatten()
            result[low - start : high - start] = changed[low - begin : high - begin]
        return result

    def _sides(self, factors: _Factors) -> tuple[Tensor, Callable[[range], Tensor]]:
        """A weight's factors in float32: [rank, columns], and what gives [rows, rank] for some rows."""
        if factors.is_transposed:
            whole = read_elements(factors.a, 0, factors.a.numel).view(factors.a.shape).float()
            other = read_elements(factors.b, 0, factors.b.numel).view(factors.b.shape).float()
            return other.T.contiguous(), lambda rows: whole[:, rows.start : rows.stop].T
        rank = factors.b.shape[1]
        first = read_elements(factors.a, 0, factors.a.numel).view(factors.a.shape).float()

        def some_rows(rows: range) -> Tensor:
            return read_elements(factors.b, rows.start * rank, len(rows) * rank).view(len(rows), rank).float()

        return first, some_rows


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


def _sort_tensors(
    file: Path, stored: dict[str, TensorInfo], base: Checkpoint, options: AdapterOptions
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], list[str]]:
    """What is stored whole by the base's names, the other tensors by their own, and what is left out.

    A head where the base's is tied, and factors of embeddings, have no place among the base's tensors: left out.
    """
    whole: dict[str, TensorInfo] = {}
    others: dict[str, TensorInfo] = {}
    left_out = []
    for name, info in stored.items():
        target = _WITHIN.sub("", name.removeprefix(_PREFIX))
        module = target.partition(".lora_")[0] + ".weight"
        is_merged = base.family.is_merged(target) and not (target in base.tensors and options.stores_whole(target))
        if is_merged or (".lora_" in target and module in base.tensors and not _OF_EMBEDDINGS.search(target)):
            others[name] = info
        elif ".lora_" in target or target not in base.tensors:
            left_out.append(name.removeprefix(_PREFIX))
        elif target in whole:
            raise InputError(f"{file}: holds {target!r} twice; {REMEDY}")
        elif len(info.shape) != len(base.tensors[target].shape) or not info.dtype.is_floating_point:
            raise InputError(
                f"{file}: tensor {name!r} is {info.dtype} of shape {list(info.shape)}, the base's is "
                f"{list(base.tensors[target].shape)}; give the base it was trained on"
            )
        else:
            whole[target] = info
    return whole, others, sorted(left_out)


def _notes(whole: Collection[str], left_out: Collection[str]) -> list[str]:
    """A note on each kind of tensor that is no factor of a linear layer."""
    notes = [f"{', '.join(sorted(whole))} is stored beside the factors"] if whole else []
    if left_out:
        notes.append(f"{', '.join(left_out)} is left out: embeddings and output head are the base's")
    return notes


def _pair_factors(
    file: Path, stored: dict[str, TensorInfo], base: Checkpoint, options: AdapterOptions
) -> dict[str, _Factors]:
    """Factors by the name of the base's tensor that they change."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in stored.items():
        module, separator, side = name.removesuffix(".weight").rpartition(".lora_")
        is_magnitude = options.has_magnitudes and _MAGNITUDES.search(name) is not None
        if not (separator and ((side in ("A", "B") and name.endswith(".weight")) or is_magnitude)):
            raise InputError(f"{file}: tensor {name!r} is not a factor of a linear layer; {REMEDY}")
        target = _WITHIN.sub("", module.removeprefix(_PREFIX) + ".weight")
        if target not in base.tensors:
            raise InputError(f"{file}: tensor {name!r} has no {target!r} in {base}; give the base it was trained on")
        if side in sides.setdefault(target, {}):
            raise InputError(f"{file}: holds factor {side} of {target!r} twice; {REMEDY}")
        sides[target][side] = info
    if not sides:
        raise InputError(f"{file}: holds no LoRA factors; train or fetch the adapter again")
    found = {}
    for target, pair in sides.items():
        _check_factors(file, target, pair, base, options)
        scale = options.scale_of(target.removesuffix(".weight"))
        is_transposed = base.family.is_transposed(target)  # whatever the adapter says: peft looks at the module
        found[target] = _Factors(pair["A"], pair["B"], pair.get(_MAGNITUDE), scale, is_transposed)
    return found


_MAGNITUDE = "magnitude_vector"


def _check_factors(
    file: Path, target: str, pair: dict[str, TensorInfo], base: Checkpoint, options: AdapterOptions
) -> None:
    shape = base.tensors[target].shape
    if len(shape) != 2 or not base.tensors[target].dtype.is_floating_point:
        raise InputError(f"{file}: {target!r} is no linear layer of {base}; give the base it was trained on")
    rank = options.rank_of(target.removesuffix(".weight"))
    is_transposed = base.family.is_transposed(target)
    if is_transposed and options.has_magnitudes:
        raise InputError(f"{file}: lengths of rows of {target!r}, which is stored transposed, are not known; {REMEDY}")
    outputs, inputs = reversed(shape) if is_transposed else shape
    expected: dict[str, tuple[int, ...]] = {"A": (rank, inputs), "B": (outputs, rank)}
    if options.has_magnitudes:
        expected[_MAGNITUDE] = (outputs,)
    for side, wanted in expected.items():
        found = pair[side].shape if side in pair else None
        if found != wanted:
            raise InputError(
                f"{file}: factor {side} of {target!r} has shape {_shown(found)}, but rank {rank} on {base}'s "
                f"{_shown(shape)} needs {_shown(wanted)}; give the base it was trained on"
            )
        if not pair[side].dtype.is_floating_point:
            raise InputError(f"{file}: factor {side} of {target!r} is {pair[side].dtype}; save it in floating point")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
