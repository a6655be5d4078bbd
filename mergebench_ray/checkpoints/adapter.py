"""A PEFT LoRA adapter applied to a base, computed for exactly the elements that are asked for.

Shapes: a linear layer's weight is [out, in], its adapter's factors are A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.digest import tensors_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.model_files import ADAPTER_CONFIG, ModelFiles
from mergebench_ray.checkpoints.safetensors_file import read_elements
from mergebench_ray.checkpoints.weight_files import PICKLE_REASON
from mergebench_ray.config import ModelRef
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily
from mergebench_ray.progress import Progress, silent

_WEIGHTS_NAME = "adapter_model.safetensors"
_BLOCK_ELEMENTS = 1 << 18
_REMEDY = "apply it with peft's merge_and_unload, save the model and give its folder instead"
# Each of these changes what the factors mean, or what else is stored beside them.
_NOT_PLAIN = (
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "fan_in_fan_out",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Initialisations that also change the base's own weights, so that the factors alone do not give the specialist.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MAX_RANK = 1 << 20
_MAX_ALPHA = 1e30
_MAX_SHOWN = 100
_PREFIX = "base_model.model."
# What peft calls a module that it saves whole, and one that it wraps.
_WITHIN = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_OF_EMBEDDINGS = re.compile(r"\.lora_embedding_[AB]$|\.token_adapter\.\w+$")


@dataclasses.dataclass(frozen=True)
class _Factors:
    a: TensorInfo
    b: TensorInfo


class AdapterCheckpoint(Checkpoint):
    """A base with a plain LoRA adapter: weight + scale · B @ A, in bf16.

    The product is summed over the rank in fp32, one rank after the other and element by element, so that no bit depends
    on how a tensor is sliced; it is scaled, added to the base and rounded once. The scale is lora_alpha / r, or
    lora_alpha / sqrt(r) with `use_rslora`.

    Embeddings and an output head that are stored beside the factors belong to the specialist, as those of a whole model
    do: they are what it is scored with, and no merge takes them.
    """

    def __init__(self, ref: ModelRef, base: Checkpoint, files: ModelFiles) -> None:
        """Read the adapter's configuration and header.

        Raises:
            InputError: if it is not plain LoRA on linear layers of this base, naming what is not.
        """
        self.ref = ref
        self.config = base.config
        self._base, self._files = base, files
        adapter_folder = files.folder
        options = read_json_object(adapter_folder / ADAPTER_CONFIG)
        _refuse_unless_plain(adapter_folder / ADAPTER_CONFIG, options, base.family)
        rank = options["r"]
        self._scale = options["lora_alpha"] / (math.sqrt(rank) if options.get("use_rslora") else rank)
        self._stored = files.header(_weights_name(files))
        self._whole, factors, self.notes = _sort_tensors(adapter_folder / _WEIGHTS_NAME, self._stored, base)
        self._factors = _pair_factors(adapter_folder / _WEIGHTS_NAME, factors, base, rank)
        for name in self._whole.keys() & self._factors.keys():
            raise InputError(f"{adapter_folder / _WEIGHTS_NAME}: holds {name!r} whole and factors for it; {_REMEDY}")
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
        """SHA-256 of base, factors and scale."""
        return canonical_digest([self._base.digest(), tensors_digest(self._stored), self._scale])

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        if info.name in self._whole:
            return read_elements(self._whole[info.name], start, count).to(info.dtype)
        values = self._base.read(info.name, start, count)
        factors = self._factors.get(info.name)
        if factors is None or count == 0:
            return values.to(info.dtype)
        _, columns = info.shape
        factor_a = read_elements(factors.a, 0, factors.a.numel).view(factors.a.shape).float()
        result = torch.empty(count, dtype=torch.bfloat16)
        rows_per_block = max(1, _BLOCK_ELEMENTS // columns)
        first_row, end_row = start // columns, -(-(start + count) // columns)
        for row in range(first_row, end_row, rows_per_block):
            num_rows = min(rows_per_block, end_row - row)
            change = self._change_of_rows(factor_a, factors.b, row, num_rows)
            low, high = max(start, row * columns), min(start + count, (row + num_rows) * columns)
            change = change[low - row * columns : high - row * columns]
            result[low - start : high - start] = values[low - start : high - start].float() + change
        return result

    def _change_of_rows(self, factor_a: Tensor, info_b: TensorInfo, row: int, num_rows: int) -> Tensor:
        """Scaled product for rows [row, row + num_rows): fp32, flattened."""
        rank, columns = factor_a.shape
        factor_b = read_elements(info_b, row * rank, num_rows * rank).view(num_rows, rank).float()
        total = torch.zeros(num_rows, columns)
        term = torch.empty_like(total)
        for j in range(rank):
            # Two operations, since a fused multiply-add rounds otherwise where a kernel falls back to scalars.
            torch.mul(factor_b[:, j, None], factor_a[j, None, :], out=term)
            total += term
        return total.mul_(self._scale).flatten()


def _refuse_unless_plain(file: Path, options: dict[str, Any], family: ModelFamily) -> None:
    if options.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {_short(options.get('peft_type'))} is not LORA; {_REMEDY}")
    for key in _NOT_PLAIN:
        if options.get(key):
            raise InputError(f"{file}: {key} = {_short(options[key])} is not plain LoRA; {_REMEDY}")
    if options.get("bias") not in (None, "none"):
        raise InputError(f"{file}: bias = {_short(options['bias'])} is not plain LoRA; {_REMEDY}")
    _refuse_saved_layers(file, options.get("modules_to_save"), family)
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(f"{file}: init_lora_weights = {_short(start)} also changes the base's weights; {_REMEDY}")
    for key, kind in (("peft_type", str), ("bias", str), ("use_rslora", bool)):
        if options.get(key) is not None and not isinstance(options[key], kind):
            raise InputError(f"{file}: {key} = {_short(options[key])} must be of type {kind.__name__}; mend the file")
    rank, alpha = options.get("r"), options.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise InputError(f"{file}: r = {_short(rank)} must be a whole number >= 1; mend the file")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= _MAX_ALPHA:
        raise InputError(f"{file}: lora_alpha = {_short(alpha)} must be a finite number; mend the file")


def _refuse_saved_layers(file: Path, modules: Any, family: ModelFamily) -> None:
    """Modules that are saved whole may only be embeddings and output heads, which no merge takes."""
    if not modules:
        return
    names = modules if isinstance(modules, list) else [modules]
    other = next((name for name in names if not isinstance(name, str) or family.is_merged(f"{name}.weight")), None)
    if other is not None:
        raise InputError(f"{file}: modules_to_save = {_short(modules)} is not plain LoRA; {_REMEDY}")


def _weights_name(files: ModelFiles) -> str:
    present = files.names()
    if _WEIGHTS_NAME not in present and "adapter_model.bin" in present:
        raise InputError(f"{files.folder}: only pickled weights (adapter_model.bin); {PICKLE_REASON}")
    return _WEIGHTS_NAME


def _sort_tensors(
    file: Path, stored: dict[str, TensorInfo], base: Checkpoint
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], list[str]]:
    """Whole embeddings and heads by the base's names, the other tensors by their own, and a note on each kind.

    A head where the base's is tied, and factors of embeddings, have no place among the base's tensors: left out.
    """
    whole: dict[str, TensorInfo] = {}
    others: dict[str, TensorInfo] = {}
    left_out = []
    for name, info in stored.items():
        target = _WITHIN.sub("", name.removeprefix(_PREFIX))
        module = target.partition(".lora_")[0] + ".weight"
        merged = base.family.is_merged(target)
        if merged or (".lora_" in target and module in base.tensors and not _OF_EMBEDDINGS.search(target)):
            others[name] = info
        elif ".lora_" in target or target not in base.tensors:
            left_out.append(name.removeprefix(_PREFIX))
        elif target in whole:
            raise InputError(f"{file}: holds {target!r} twice; {_REMEDY}")
        elif len(info.shape) != len(base.tensors[target].shape) or not info.dtype.is_floating_point:
            raise InputError(
                f"{file}: tensor {name!r} is {info.dtype} of shape {list(info.shape)}, the base's is "
                f"{list(base.tensors[target].shape)}; give the base it was trained on"
            )
        else:
            whole[target] = info
    notes = [f"{', '.join(sorted(whole))} is stored beside the factors and not merged"] if whole else []
    if left_out:
        notes.append(f"{', '.join(sorted(left_out))} is left out: embeddings and output head are the base's")
    return whole, others, notes


def _pair_factors(file: Path, stored: dict[str, TensorInfo], base: Checkpoint, rank: int) -> dict[str, _Factors]:
    """Factors by the name of the base's tensor that they change."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in stored.items():
        module, separator, side = name.removesuffix(".weight").rpartition(".lora_")
        if not separator or side not in ("A", "B") or not name.endswith(".weight"):
            raise InputError(f"{file}: tensor {name!r} is not a factor of a linear layer; {_REMEDY}")
        target = _WITHIN.sub("", module.removeprefix(_PREFIX) + ".weight")
        if target not in base.tensors:
            raise InputError(f"{file}: tensor {name!r} has no {target!r} in {base}; give the base it was trained on")
        if side in sides.setdefault(target, {}):
            raise InputError(f"{file}: holds factor {side} of {target!r} twice; {_REMEDY}")
        sides[target][side] = info
    if not sides:
        raise InputError(f"{file}: holds no LoRA factors; train or fetch the adapter again")
    for target, pair in sides.items():
        shape = base.tensors[target].shape
        if len(shape) != 2 or not base.tensors[target].dtype.is_floating_point:
            raise InputError(f"{file}: {target!r} is no linear layer of {base}; give the base it was trained on")
        for side, expected in (("A", (rank, shape[-1])), ("B", (shape[0], rank))):
            found = pair[side].shape if side in pair else None
            if found != expected:
                raise InputError(
                    f"{file}: factor {side} of {target!r} has shape {_shown(found)}, but rank {rank} on {base}'s "
                    f"{_shown(shape)} needs {_shown(expected)}; give the base it was trained on"
                )
            if not pair[side].dtype.is_floating_point:
                raise InputError(
                    f"{file}: factor {side} of {target!r} is {pair[side].dtype}; save it in floating point"
                )
    return {target: _Factors(pair["A"], pair["B"]) for target, pair in sides.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
