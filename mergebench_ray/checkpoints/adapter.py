"""A PEFT LoRA adapter applied to a base, computed for exactly the elements that are asked for.

Shapes: a linear layer's weight is [out, in], its adapter's factors are A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.digest import canonical_digest, tensors_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.safetensors_file import read_elements, read_header
from mergebench_ray.checkpoints.weight_files import PICKLE_REASON
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError

_CONFIG_NAME = "adapter_config.json"
_WEIGHTS_NAME = "adapter_model.safetensors"
_BLOCK_ELEMENTS = 1 << 18
_REMEDY = "apply it with peft's merge_and_unload, save the model and give its folder instead"
# Each of these changes what the factors mean, or what else is stored beside them.
_NOT_PLAIN = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
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


@dataclasses.dataclass(frozen=True)
class _Factors:
    a: TensorInfo
    b: TensorInfo


class AdapterCheckpoint(Checkpoint):
    """A base with a plain LoRA adapter: weight + scale · B @ A, in bf16.

    The product is summed over the rank in fp32, one rank after the other and element by element, so that no bit depends
    on how a tensor is sliced; it is scaled, added to the base and rounded once. The scale is lora_alpha / r, or
    lora_alpha / sqrt(r) with `use_rslora`.
    """

    def __init__(self, ref: ModelRef, base: Checkpoint, adapter_folder: Path) -> None:
        """Read the adapter's configuration and header.

        Raises:
            InputError: if it is not plain LoRA on linear layers of this base, naming what is not.
        """
        self.ref = ref
        self.folder = base.folder
        self.config = base.config
        self._base = base
        options = read_json_object(adapter_folder / _CONFIG_NAME)
        _refuse_unless_plain(adapter_folder / _CONFIG_NAME, options)
        rank = options["r"]
        self._scale = options["lora_alpha"] / (math.sqrt(rank) if options.get("use_rslora") else rank)
        self._stored = read_header(_weights_file(adapter_folder))
        self._factors = _pair_factors(adapter_folder / _WEIGHTS_NAME, self._stored, base, rank)
        self.tensors = {
            name: dataclasses.replace(info, dtype=torch.bfloat16) if info.dtype.is_floating_point else info
            for name, info in base.tensors.items()
        }

    def digest(self) -> str:
        """SHA-256 of base, factors and scale."""
        return canonical_digest([self._base.digest(), tensors_digest(self._stored), self._scale])

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
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


def _refuse_unless_plain(file: Path, options: dict[str, Any]) -> None:
    if options.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {options.get('peft_type')!r} is not LORA; {_REMEDY}")
    for key in _NOT_PLAIN:
        if options.get(key):
            raise InputError(f"{file}: {key} = {options[key]!r} is not plain LoRA; {_REMEDY}")
    if options.get("bias", "none") != "none":
        raise InputError(f"{file}: bias = {options['bias']!r} is not plain LoRA; {_REMEDY}")
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(f"{file}: init_lora_weights = {start!r} also changes the base's weights; {_REMEDY}")
    rank, alpha = options.get("r"), options.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"{file}: r = {rank!r} must be a whole number >= 1; mend the file")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise InputError(f"{file}: lora_alpha = {alpha!r} must be a finite number; mend the file")


def _weights_file(folder: Path) -> Path:
    file = folder / _WEIGHTS_NAME
    if not file.is_file() and (folder / "adapter_model.bin").is_file():
        raise InputError(f"{folder}: only pickled weights (adapter_model.bin); {PICKLE_REASON}")
    return file


def _pair_factors(file: Path, stored: dict[str, TensorInfo], base: Checkpoint, rank: int) -> dict[str, _Factors]:
    """Factors by the name of the base's tensor that they change."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in stored.items():
        module, separator, side = name.removesuffix(".weight").rpartition(".lora_")
        if not separator or side not in ("A", "B") or not name.endswith(".weight"):
            raise InputError(f"{file}: tensor {name!r} is not a factor of a linear layer; {_REMEDY}")
        target = module.removeprefix("base_model.model.") + ".weight"
        if target not in base.tensors:
            raise InputError(f"{file}: tensor {name!r} has no {target!r} in {base}; give the base it was trained on")
        sides.setdefault(target, {})[side] = info
    if not sides:
        raise InputError(f"{file}: holds no LoRA factors; train or fetch the adapter again")
    for target, pair in sides.items():
        shape = base.tensors[target].shape
        for side, expected in (("A", (rank, shape[-1])), ("B", (shape[0], rank))):
            found = pair[side].shape if side in pair else None
            if len(shape) != 2 or found != expected:
                raise InputError(
                    f"{file}: factor {side} of {target!r} has shape {_shown(found)}, but rank {rank} on {base}'s "
                    f"{_shown(shape)} needs {_shown(expected)}; give the base it was trained on"
                )
            if not pair[side].dtype.is_floating_point:
                raise InputError(
                    f"{file}: factor {side} of {target!r} is {pair[side].dtype}; save it in floating point"
                )
    return {target: _Factors(pair["A"], pair["B"]) for target, pair in sides.items()}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
