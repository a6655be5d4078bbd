"""Weights of bitsandbytes, four bits (nf4, fp4) or eight, by its own functions on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.packed_weight import Found, PackedWeight, UnreadableError, require_shape
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from mergebench_ray.families.configuration import tensor_shapes
from mergebench_ray.install_hints import install_command

_STATE = ".quant_state.bitsandbytes__"
_LARGEST_BLOCK = 4096
_FURTHER = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


@dataclass(frozen=True)
class FourBitWeight(PackedWeight):
    """A weight [rows, columns] of bytes with two entries each, in blocks that have a scale of their own."""

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Some rows, in the type that the weight had."""
        from bitsandbytes import functional

        stored = {name.removeprefix("state:"): self.part(name) for name in self.parts if name != "main"}
        whole = functional.QuantState.from_dict(stored, torch.device("cpu"))
        if tuple(whole.shape) != self.shape or _LARGEST_BLOCK % whole.blocksize:
            info = self.parts["main"]
            raise InputError(f"{info.file}: {info.name!r} was {list(whole.shape)}, not {list(self.shape)}; fetch again")
        scales = whole.absmax
        if whole.nested:
            scales = functional.dequantize_blockwise(whole.absmax, whole.state2) + whole.offset
        columns = self.shape[1]
        begin, end = first * columns // whole.blocksize, -(-stop * columns // whole.blocksize)
        some = functional.QuantState(
            absmax=scales.float()[begin:end],
            shape=torch.Size((stop - first, columns)),
            code=whole.code,
            blocksize=whole.blocksize,
            quant_type=whole.quant_type,
            dtype=whole.dtype,
        )
        found: Tensor = functional.dequantize_4bit(
            self.part_rows("main", first * columns // 2, stop * columns // 2), some
        )
        return found


@dataclass(frozen=True)
class EightBitWeight(PackedWeight):
    """A weight int8 [rows, columns] with a scale for each row, `SCB`."""

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Some rows, in float32."""
        from bitsandbytes import functional

        if "format" in self.parts and self.part("format").item():
            info = self.parts["format"]
            raise InputError(f"{info.file}: {info.name!r} says that rows are not as they were; give plain weights")
        values, scales = self.part_rows("main", first, stop), self.part_rows("scales", first, stop)
        found: Tensor = functional.int8_vectorwise_dequant(values, scales)
        return found


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """Packed weights and what they are made plain with; shapes of four-bit ones are those of the configuration.

    Raises:
        UnreadableError: bitsandbytes is not installed; weights that are stored transposed; parts that do not fit.
    """
    family = family_of(config.get("model_type"))
    weights: list[PackedWeight] = []
    shapes = None
    kinds = set()
    states = {name.partition(_STATE)[0]: info for name, info in tensors.items() if _STATE in name}
    for name, info in tensors.items():
        state = states.get(name)
        scales = tensors.get(f"{name.removesuffix('.weight')}.SCB")
        if state is None and (scales is None or info.dtype != torch.int8):
            continue
        if family.is_transposed(name):
            raise UnreadableError(f"{name!r} is stored transposed where it is not quantised")
        if state is not None:
            shapes = tensor_shapes(config, file) if shapes is None else shapes
            weights.append(_four_bits(info, state, shapes.get(name), tensors))
            kinds.add(state.name.rpartition("__")[2])
        elif scales is not None:
            require_shape(scales, (info.shape[0],))
            further = f"{name.removesuffix('.weight')}.weight_format"
            parts = {"main": info, "scales": scales, **({"format": tensors[further]} if further in tensors else {})}
            weights.append(EightBitWeight(name, info.shape, parts))
            kinds.add("int8")
    if weights and importlib.util.find_spec("bitsandbytes") is None:
        raise UnreadableError(f"to read it here, run: {install_command('bitsandbytes')}")
    return Found(f"{' and '.join(sorted(kinds))} (bitsandbytes)", tuple(weights))


def _four_bits(
    info: TensorInfo, state: TensorInfo, shape: tuple[int, ...] | None, tensors: Mapping[str, TensorInfo]
) -> FourBitWeight:
    if shape is None or len(shape) != 2 or info.numel * 2 != shape[0] * shape[1] or info.dtype != torch.uint8:
        raise UnreadableError(f"{info.name!r} does not fit the configuration's shape {shape}")
    parts = {"main": info, f"state:{state.name.removeprefix(info.name + '.')}": state}
    parts |= {f"state:{one}": tensors[f"{info.name}.{one}"] for one in _FURTHER if f"{info.name}.{one}" in tensors}
    return FourBitWeight(info.name, shape, parts, _LARGEST_BLOCK // gcd(_LARGEST_BLOCK, shape[1]))
