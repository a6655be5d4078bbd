"""FP8 weights with a scale for each block (`weight_scale_inv`), row or tensor, as DeepSeek's and Qwen's are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.packed_weight import (
    Found,
    PackedWeight,
    UnreadableError,
    require_float,
    require_shape,
)
from mergebench_ray.checkpoints.safetensors_file import read_elements

OF_ACTIVATIONS = re.compile(r"[._](?:input|output|activation|[qkv])_(?:scale|zero_point|global_scale)(?:_inv)?$")
"""Tensors that say how activations are quantised."""
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Fp8Weight(PackedWeight):
    """FP8 numbers [..., rows, columns], each to be multiplied with the scale of its block.

    Attributes:
        block: rows and columns of a block; those at the end may be smaller.
    """

    block: tuple[int, int] = (1, 1)

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Some rows, multiplied in float32."""
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        num_rows, columns = self.shape[-2:]
        height, width = self.block
        start = (matrix * num_rows + first) * columns
        values = read_elements(self.parts["main"], start, (stop - first) * columns).view(-1, columns)
        scales = self.part("scale").float().view(-1, -(-columns // width))
        above = matrix * -(-num_rows // height)
        # What is less than a block would be filled up to one.
        block = [min(height, stop - first), width]
        args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=block)
        some = scales[above + first // height : above - (-stop // height)]
        found: Tensor = dequantize(values, some, args=args)
        return found


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """FP8 weights and their scales.

    Raises:
        UnreadableError: a weight without a scale, or with one of another shape.
    """
    weights = []
    for name, info in tensors.items():
        if info.dtype not in FP8 or OF_ACTIVATIONS.search(name):
            continue
        scale = next((tensors[name + end] for end in _SCALES if name + end in tensors), None)
        if scale is None or len(info.shape) < 2:
            raise UnreadableError(f"{name!r} has no scale beside it")
        require_float(scale)
        block = _block(info, scale, options.get("weight_block_size"))
        # Where all rows share a scale, any of them can be had alone.
        row_block = 1 if block[0] == info.shape[-2] else block[0]
        weights.append(Fp8Weight(name, info.shape, {"main": info, "scale": scale}, row_block, block))
    return Found("fp8", tuple(weights), frozenset(name for name in tensors if OF_ACTIVATIONS.search(name)))


def _block(info: TensorInfo, scale: TensorInfo, size: Any) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    *matrices, rows, columns = info.shape
    if scale.numel == 1 and not matrices:
        return rows, columns
    if scale.shape in ((*matrices, rows), (*matrices, rows, 1)):
        return 1, columns
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(one, int) and one > 0 for one in size)):
        raise UnreadableError(f"weight_block_size is {size!r}")
    height, width = size
    require_shape(scale, (*matrices, -(-rows // height), -(-columns // width)))
    return height, width
