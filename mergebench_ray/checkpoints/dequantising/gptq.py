"""GPTQ weights of two, four or eight bits, unpacked and multiplied by compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import tensor_shapes

_BITS = (2, 4, 8)
_OF_INT32 = 32


@dataclass(frozen=True)
class GptqWeight(PackedByColumn):
    """A weight [outputs, inputs] of `qweight` int32 [inputs / n, outputs], n numbers in each.

    Attributes:
        bits: of a number.
        group_size: inputs that share a scale.
        adds_one: whether zero points are stored less one, as the first version of the format has them.
    """

    bits: int = 4
    group_size: int = 128
    adds_one: bool = True

    def unpacked(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Some outputs, in the type of their scales."""
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        scales, zeros = stored["scales"], stored["qzeros"]
        inputs, count = self.shape[1], scales.shape[1]
        values = unpack_from_int32(stored["main"], self.bits, torch.Size((inputs, count)), packed_dim=0)
        # As they are stored, counted from the middle of what bits can say.
        middle = unpack_from_int32(zeros, self.bits, torch.Size((len(zeros), count)), packed_dim=1).to(torch.int16)
        if self.adds_one and bool((middle == (1 << (self.bits - 1)) - 1).any()):
            raise InputError(
                f"{self.parts['qzeros'].file}: {self.parts['qzeros'].name!r} holds a zero point that programs read in "
                "two ways; give plain weights, or the format gptq_v2"
            )
        order = self._order(stored.get("g_idx"))
        args = QuantizationArgs(num_bits=self.bits, strategy="group", group_size=self.group_size)
        points = (middle + int(self.adds_one)).T
        return dequantize(values.T, scales.T, points, args=args, g_idx=order)  # type: ignore[no-any-return]

    def _order(self, stored: Tensor | None) -> Tensor | None:
        """The group of each input; None where they come one after the other."""
        if stored is None:
            return None
        found = stored.long()
        plain = torch.arange(len(found)) // self.group_size
        if torch.equal(found, plain):
            return None
        if not torch.equal(found.sort().values, plain):
            info = self.parts["g_idx"]
            raise InputError(f"{info.file}: {info.name!r} has groups of other sizes than its settings; fetch it again")
        return found


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """Packed weights, their scales, zero points and groups.

    Raises:
        UnreadableError: other bits, another format, or parts that do not fit.
    """
    bits, version = options.get("bits"), options.get("checkpoint_format") or "gptq"
    if bits not in _BITS or version not in ("gptq", "gptq_v2"):
        raise UnreadableError(f"{bits} bits in the format {version!r} are not known here")
    per = _OF_INT32 // bits
    weights = []
    for name, packed in tensors.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        names = {"main": name, **{one: f"{module}.{one}" for one in ("scales", "qzeros", "g_idx")}}
        parts = {part: tensors[one] for part, one in names.items() if one in tensors}
        inputs, outputs = packed.shape[0] * per, packed.shape[1]
        size = options.get("group_size", 128)
        size = inputs if size == -1 else size
        if packed.dtype != torch.int32 or inputs % size or outputs % per:
            raise UnreadableError(f"{name!r} is {packed.dtype} of {inputs} inputs in groups of {size}")
        require_float(parts["scales"])
        require_shape(parts["scales"], (inputs // size, outputs))
        require_shape(parts["qzeros"], (inputs // size, outputs // per))
        if "g_idx" in parts:
            require_shape(parts["g_idx"], (inputs,))
        shape = (outputs, inputs)
        weights.append(GptqWeight(f"{module}.weight", shape, parts, per, bits, size, version == "gptq"))
    return Found("gptq", tuple(weights), _needless_biases(weights, tensors, config, file))


def _needless_biases(
    weights: Sequence[GptqWeight], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path
) -> frozenset[str]:
    """Biases that early programs wrote, zeros all, for layers that have none; all that read such weights drop them."""
    biases = {f"{weight.name.removesuffix('.weight')}.bias": weight.name for weight in weights}
    stored = {bias: weight for bias, weight in biases.items() if bias in tensors}
    if not stored:
        return frozenset()
    try:
        known = tensor_shapes(config, file)
    except InputError:  # no class that would say so
        return frozenset()
    return frozenset(bias for bias, weight in stored.items() if weight in known and bias not in known)
