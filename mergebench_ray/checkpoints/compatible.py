"""Whether specialists can be merged into a base, decided from headers and configurations before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.roles import is_merged, is_output_head
from mergebench_ray.checkpoints.writer import output_config
from mergebench_ray.errors import InputError

_MERGEABLE = (torch.bfloat16, torch.float16, torch.float32)
_SAME_BASE = "give specialists that were fine-tuned from this base"
# Equal shapes do not imply these to be equal, and other values give the same numbers another meaning.
_SAME_SETTINGS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def check_compatible(base: Checkpoint, specialists: Mapping[str, Checkpoint]) -> list[str]:
    """Check that specialists differ from their base only in ways that have a rule.

    Rules: further vocabulary rows of embeddings and output head are left out (the base's rows are used, and an untied
    head counts for thresholds with the base's rows only); fp32 and fp16 weights are rounded to bf16 when read into the
    bank. Everything else is refused: another architecture or shape, a tied head against an untied one, missing or
    further tensors, quantised weights.

    Returns:
        One line for each rule that was applied.

    Raises:
        InputError: naming specialist, tensor, both shapes, and what to do.
    """
    notes = [f"base ({base}): {note}" for note in (*base.notes, *output_config(base)[1])]
    notes += _check_dtypes(f"base ({base})", base)
    for name in sorted(specialists):
        specialist = specialists[name]
        who = f"specialist {name!r} ({specialist})"
        _check_architecture(who, base, specialist)
        _check_heads(who, base, specialist)
        _check_names(who, base, specialist)
        notes += [f"{who}: {note}" for note in specialist.notes]
        notes += _check_shapes(who, base, specialist)
        notes += _check_dtypes(who, specialist)
    return notes


def _check_architecture(who: str, base: Checkpoint, specialist: Checkpoint) -> None:
    for key in ("model_type", "architectures", *_SAME_SETTINGS):
        ours, theirs = base.config.get(key), specialist.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(f"{who}: {key} is {theirs!r}, the base's is {ours!r} ({base}); {_SAME_BASE}")


def _check_heads(who: str, base: Checkpoint, specialist: Checkpoint) -> None:
    ours, theirs = _has_own_head(base), _has_own_head(specialist)
    if ours != theirs:
        kind = {True: "an output head of its own", False: "its output head tied to the embeddings"}
        raise InputError(f"{who}: has {kind[theirs]}, the base has {kind[ours]} ({base}); {_SAME_BASE}")


def _has_own_head(checkpoint: Checkpoint) -> bool:
    return any(is_output_head(name) for name in checkpoint.tensors)


def _check_names(who: str, base: Checkpoint, specialist: Checkpoint) -> None:
    missing = sorted(set(base.tensors) - set(specialist.tensors))
    if missing:
        raise InputError(f"{who}: tensor {missing[0]!r}{_others(missing)} of the base is missing; {_SAME_BASE}")
    extra = sorted(set(specialist.tensors) - set(base.tensors))
    if extra:
        raise InputError(f"{who}: tensor {extra[0]!r}{_others(extra)} is not in the base; {_SAME_BASE}")


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_shapes(who: str, base: Checkpoint, specialist: Checkpoint) -> list[str]:
    notes = []
    for name, ours in base.tensors.items():
        theirs = specialist.tensors[name]
        if ours.shape == theirs.shape:
            continue
        if is_merged(name) or not _has_further_rows(ours, theirs):
            raise InputError(
                f"{who}: tensor {name!r} has shape {list(theirs.shape)}, the base's has {list(ours.shape)} ({base}); "
                f"{_SAME_BASE}"
            )
        notes.append(f"{who}: {name} has {theirs.shape[0]} rows, the base's {ours.shape[0]} are used")
    return notes


def _has_further_rows(ours: TensorInfo, theirs: TensorInfo) -> bool:
    return bool(ours.shape and theirs.shape) and ours.shape[1:] == theirs.shape[1:] and ours.shape[0] < theirs.shape[0]


def _check_dtypes(who: str, checkpoint: Checkpoint) -> list[str]:
    found = {info.dtype: info.name for info in checkpoint.tensors.values()}
    for dtype, name in found.items():
        if dtype not in _MERGEABLE:
            raise InputError(f"{who}: tensor {name!r} is {_short(dtype)}; give weights in bf16, fp16 or fp32")
    rounded = sorted(_short(dtype) for dtype in found if dtype != torch.bfloat16)
    return [f"{who}: {' and '.join(rounded)} weights are rounded to bfloat16"] if rounded else []


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
