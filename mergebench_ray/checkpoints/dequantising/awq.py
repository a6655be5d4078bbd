"""AWQ weights, four bits a number, by compressed-tensors' converter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.packed_weight import (
    Found,
    PackedByColumn,
    UnreadableError,
    require_float,
    require_shape,
)

_PER_INT32 = 8


@dataclass(frozen=True)
class AwqWeight(PackedByColumn):
    """A weight [outputs, inputs] of `qweight` int32 [inputs, outputs / 8].

    Attributes:
        group_size: inputs that share a scale.
        has_zeros: whether each group has a zero point.
    """

    group_size: int = 128
    has_zeros: bool = True

    def unpacked(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Some outputs, in the type of their scales."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

        names = {"main": "qweight", "scales": "scales", **({"qzeros": "qzeros"} if self.has_zeros else {})}
        tensors = {f"m.{name}": stored[part] for part, name in names.items()}
        converter = AutoAWQConverter(group_size=self.group_size, zero_point=self.has_zeros, ignore=())
        (scheme,) = converter.create_config().config_groups.values()
        state = {name.removeprefix("m."): one for name, one in converter.process(tensors).items()}
        return BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]  # type: ignore[no-any-return]


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """Packed weights, their scales and zero points.

    Raises:
        UnreadableError: another version than "gemm", other bits than four, or parts that do not fit.
    """
    bits, version = options.get("bits", 4), str(options.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise UnreadableError(f"{bits} bits in version {version!r} are not known here, four in 'gemm' are")
    has_zeros = bool(options.get("zero_point", True))
    weights = []
    for name, packed in tensors.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        names = {"main": name, "scales": f"{module}.scales", "qzeros": f"{module}.qzeros"}
        parts = {part: tensors[one] for part, one in names.items() if one in tensors}
        inputs, outputs = packed.shape[0], packed.shape[1] * _PER_INT32
        size = options.get("group_size", 128)
        size = inputs if size == -1 else size
        require_float(parts["scales"])
        require_shape(parts["scales"], (inputs // size, outputs))
        if has_zeros or "qzeros" in parts:
            require_shape(parts["qzeros"], (inputs // size, packed.shape[1]))
        if packed.dtype != torch.int32 or inputs % size:
            raise UnreadableError(f"{name!r} is {packed.dtype} of {inputs} inputs in groups of {size}")
        weights.append(AwqWeight(f"{module}.weight", (outputs, inputs), parts, _PER_INT32, size, has_zeros))
    return Found("awq", tuple(weights))
