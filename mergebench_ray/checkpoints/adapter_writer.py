"""Writing what a model has learned as a LoRA adapter of its base: of each matrix's change what a rank can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, read_in_shape_of, require_finite
from mergebench_ray.checkpoints.model_files import ADAPTER_CONFIG
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_folder
from mergebench_ray.progress import Meter, Progress, silent

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_FURTHER = 10
"""Directions beside the rank that the search for the largest ones carries along."""
_STEPS = 4


@dataclass(frozen=True)
class AdapterErrors:
    """What an adapter leaves out of a model's changes.

    Attributes:
        error: length of what is left out of all matrices' changes, over the length of these changes.
        by_tensor: the same of each matrix that was changed.
        left_out: other tensors that differ from the base's and are not in the adapter: embeddings and output head.
    """

    error: float
    by_tensor: Mapping[str, float]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        worst = max(self.by_tensor, key=lambda name: self.by_tensor[name])
        return f"{self.error:.1%} of the change is left out, most of {worst}: {self.by_tensor[worst]:.1%}"


def check_adapter_output(base: Checkpoint) -> None:
    """Refuse a base of which a plain adapter cannot hold all changes; embeddings and output head aside.

    Raises:
        InputError: naming the tensor.
    """
    for name, info in base.tensors.items():
        if base.is_merged(name) and info.dtype.is_floating_point and len(info.shape) > 2 and info.numel:
            raise InputError(f"base ({base}): {name!r} has shape {list(info.shape)}; an adapter holds matrices alone")


def write_adapter(
    out: Path, model: Checkpoint, base: Checkpoint, rank: int, progress: Progress = silent
) -> AdapterErrors:
    """Write an adapter as peft does: factors of matrices in float32, all else that has changed whole.

    The factors are those of the largest singular values, found by a few steps of subspace iteration from a start that
    the tensor's name fixes, so that the same model gives the same adapter on one kind of machine.

    Args:
        out: folder to make; may exist if it is empty.
        model: fits the base.
        base: what it is an adapter of.
        rank: of the factors; the smaller side of a matrix is its limit.
        progress: told of it.

    Raises:
        InputError: as `check_adapter_output`; if nothing has changed, `out` exists, or the disk is full: nothing is
            left behind.
    """
    check_adapter_output(base)
    stored: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    left_out: list[str] = []
    lengths: dict[str, tuple[float, float]] = {}
    shared = [name for name in base.tensors if name in model.tensors and base.tensors[name].dtype.is_floating_point]
    total = sum(base.tensors[name].numel * torch.bfloat16.itemsize for name in shared)
    meter = Meter(progress, "looking for the largest directions", total)
    for name in shared:
        shape = base.tensors[name].shape
        values = read_in_shape_of(base, model, name, 0, base.tensors[name].numel).view(shape)
        require_finite(model, name, values)
        change = values.float() - base.read(name).view(shape).to(values.dtype).float()
        meter.add(values.nbytes)
        meter.report()
        if not change.any():
            continue
        module, _, leaf = name.rpartition(".")
        if not base.is_merged(name):
            left_out.append(name)
        elif len(shape) == 2 and leaf == "weight":
            as_linear = change.T if base.family.is_transposed(name) else change
            a, b = _factors(as_linear, rank, name)
            ranks[module] = len(a)
            stored |= {f"{_PREFIX}{module}.lora_A.weight": a, f"{_PREFIX}{module}.lora_B.weight": b}
            lengths[name] = float((as_linear - b @ a).norm()), float(change.norm())
        else:
            beside[name] = values
    if not ranks:
        raise InputError(f"{model}: no matrix of its layers differs from the base's ({base}); give another model")
    for name, values in beside.items():
        # Peft wraps a module that has factors, and its bias with it.
        module, _, leaf = name.rpartition(".")
        stored[f"{_PREFIX}{module}.base_layer.{leaf}" if module in ranks else _PREFIX + name] = values
    with whole_folder(out) as folder:
        save_file(stored, folder / _WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_config(base, rank, ranks, list(beside)), indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    missed, changed = (math.hypot(*column) for column in zip(*lengths.values(), strict=True))
    by_tensor = {name: part / of for name, (part, of) in lengths.items()}
    return AdapterErrors(missed / changed, by_tensor, tuple(left_out))


def _factors(change: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor]:
    """A [rank, columns] and B [rows, rank] whose product is nearest to a matrix, each with half of its size."""
    rank = min(rank, *change.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        left, sizes, right = torch.svd_lowrank(change, min(rank + _FURTHER, *change.shape), niter=_STEPS)
    roots = sizes[:rank].sqrt()
    return (right[:, :rank] * roots).T.contiguous(), (left[:, :rank] * roots).contiguous()


def _config(base: Checkpoint, rank: int, ranks: Mapping[str, int], whole: Sequence[str]) -> dict[str, object]:
    """What peft reads; the product is not scaled."""
    # Peft takes patterns, which dots in names are, too; they fit what they are meant for, and nothing else here.
    other = {module: one for module, one in ranks.items() if one != rank}
    saved = [name for name in whole if not name.endswith(".bias")]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.ref.hub_id or str(base.ref),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": list(ranks),
        "modules_to_save": [name.rpartition(".")[0] for name in saved] or None,
        "bias": "all" if len(saved) < len(whole) else "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(base.family.is_transposed(f"{module}.weight") for module in ranks),
        "inference_mode": True,
    }
