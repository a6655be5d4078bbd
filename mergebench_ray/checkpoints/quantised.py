"""Telling quantised weights that are not read as plain ones: they cannot be merged, and say so in many ways."""

from __future__ import annotations

import re

import torch

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.dequantising import method_of, quantisation
from mergebench_ray.checkpoints.quantised_checkpoint import why_not_plain
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily

PLAIN = (torch.bfloat16, torch.float16, torch.float32)
# Names that GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8 and MXFP4 give to packed weights and their scales.
_PACKED = re.compile(
    r"[._](?:qweight|qzeros|g_idx|scales|blocks|weight_scale\w*|weight_packed|weight_zero_point|weight_shape|"
    r"input_scale|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+|SCB|weight_format)$"
)


def refuse_quantised(who: str, checkpoint: Checkpoint) -> list[str]:
    """Refuse weights that are not plain floating point.

    Returns:
        A note where only the configuration calls plain weights quantised.

    Raises:
        InputError: naming a tensor and what to do.
    """
    family = checkpoint.family
    packed = next((info for info in checkpoint.tensors.values() if _is_packed(info, family)), None)
    options = quantisation(checkpoint.config)
    method = None if options is None else method_of(options)
    if packed is not None:
        kind = f", {method}" if method is not None else ""
        reason = why_not_plain(checkpoint)
        because = f": {reason}" if reason else " as is not known here"
        raise InputError(
            f"{who}: is quantised (tensor {packed.name!r} is {shown(packed.dtype)}{kind}){because}; give its weights "
            "in bf16, fp16 or fp32, as they were before, or dequantise and save them"
        )
    for info in checkpoint.tensors.values():
        if info.dtype.is_floating_point and info.dtype not in PLAIN:
            raise InputError(f"{who}: tensor {info.name!r} is {shown(info.dtype)}; give weights in bf16, fp16 or fp32")
    if options:
        return [f"config.json says quantised ({method or 'quantization_config'}), but the weights are not"]
    return []


def shown(dtype: torch.dtype) -> str:
    """A type as people write it."""
    return str(dtype).removeprefix("torch.")


def _is_packed(info: TensorInfo, family: ModelFamily) -> bool:
    if info.dtype in PLAIN or info.dtype is torch.float64:
        return _PACKED.search(info.name) is not None and not info.name.endswith((".scales", ".blocks"))
    if info.dtype is torch.bool or family.is_buffer(info.name):
        return False
    return info.dtype.is_floating_point or info.name.endswith(".weight") or _PACKED.search(info.name) is not None
