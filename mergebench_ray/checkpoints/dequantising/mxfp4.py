"""MXFP4 experts, as gpt-oss has them: `_blocks` of sixteen bytes with an exponent each in `_scales`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.packed_weight import Found, PackedWeight, UnreadableError, require_shape

_ENTRIES = 32
"""Of a block."""


@dataclass(frozen=True)
class Mxfp4Weight(PackedWeight):
    """Weights [experts, inputs, outputs] of blocks uint8 [experts, outputs, inputs / 32, 16]."""

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Some inputs of an expert, as transformers makes them."""
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        some = slice(first // _ENTRIES, stop // _ENTRIES)
        blocks = self.part_rows("main", matrix, matrix + 1)[:, :, some]
        scales = self.part_rows("scales", matrix, matrix + 1)[:, :, some]
        found: Tensor = convert_moe_packed_tensors(blocks, scales)[0]
        return found


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """Blocks and their scales.

    Raises:
        UnreadableError: blocks without scales, or of another shape.
    """
    weights = []
    for name, blocks in tensors.items():
        if not name.endswith("_blocks"):
            continue
        weight = name.removesuffix("_blocks")
        scales = tensors.get(f"{weight}_scales")
        if scales is None or len(blocks.shape) != 4 or not blocks.dtype == scales.dtype == torch.uint8:
            raise UnreadableError(f"{name!r} has no scales beside it, or is no list of blocks of bytes")
        experts, outputs, groups, _ = blocks.shape
        require_shape(blocks, (experts, outputs, groups, _ENTRIES // 2))
        require_shape(scales, (experts, outputs, groups))
        shape = (experts, groups * _ENTRIES, outputs)
        weights.append(Mxfp4Weight(weight, shape, {"main": blocks, "scales": scales}, _ENTRIES))
    return Found("mxfp4", tuple(weights))
