"""Weights in compressed-tensors' own formats: FP8, INT8, packed integers, FP4 and MX, by its own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.fp8 import OF_ACTIVATIONS
from mergebench_ray.checkpoints.dequantising.packed_weight import Found, PackedWeight, UnreadableError, require_shape
from mergebench_ray.errors import InputError

_PLAIN_NUMBERS = ("naive-quantized", "int-quantized", "float-quantized")
"""Formats that keep each number in a byte."""
_PACKED_INTEGERS = "pack-quantized"
_FP4 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
_MXFP8 = "mxfp8-quantized"
_OF_INT32 = 32


@dataclass(frozen=True)
class CompressedWeight(PackedWeight):
    """A weight [rows, columns] of one of the formats.

    Attributes:
        format: which.
        scheme: what the configuration says of it, as JSON of a `QuantizationScheme`.
        scale_rows: rows that share a scale; 0 where all do.
    """

    format: str = ""
    scheme: str = ""
    scale_rows: int = 1

    def rows(self, matrix: int, first: int, stop: int) -> Tensor:
        """Some rows, in the type of their scales."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        scheme = QuantizationScheme.model_validate_json(self.scheme)
        state = {local: self._some(local, first, stop) for local in self.parts if local != "main"}
        values = self.part_rows("main", first, stop)
        if self.format in _PLAIN_NUMBERS:
            scale, zeros, order = (state.get(name) for name in ("weight_scale", "weight_zero_point", "weight_g_idx"))
            return dequantize(values, scale, zeros, args=scheme.weights, g_idx=order)  # type: ignore[no-any-return]
        main = "weight" if self.format == _MXFP8 else "weight_packed"
        if self.format == _PACKED_INTEGERS:
            state["weight_shape"] = torch.tensor([stop - first, self.shape[1]])
        compressor = BaseCompressor.get_value_from_registry(self.format)
        return compressor.decompress({main: values, **state}, scheme)["weight"]  # type: ignore[no-any-return]

    def _some(self, local: str, first: int, stop: int) -> Tensor:
        """What some rows need of a part beside the numbers."""
        if local == "weight_shape":
            said = self.part(local).flatten().tolist()
            if said != list(self.shape):
                info = self.parts[local]
                raise InputError(
                    f"{info.file}: {info.name!r} says {said}, where {list(self.shape)} is expected; give plain weights"
                )
        if local in ("weight_shape", "weight_g_idx", "weight_global_scale") or not self.scale_rows:
            return self.part(local)
        per = self.scale_rows
        if local == "weight_zero_point" and self.format == _PACKED_INTEGERS:
            per = self.row_block
        return self.part_rows(local, first // per, -(-stop // per))


def find(options: Mapping[str, Any], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], file: Path) -> Found:
    """Weights with a scale beside them, and what the configuration's groups say of them.

    Raises:
        UnreadableError: sparse or rotated weights, or a format that is not known here.
    """
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    _refuse_more_than_quantised(options)
    settings = QuantizationConfig.model_validate(dict(options))
    groups = [one for one in settings.config_groups.values() if one.weights is not None]
    weights = []
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf != "weight_scale":
            continue
        scheme = next(
            (one for one in groups if any(target == "Linear" or match_name(module, target) for target in one.targets)),
            groups[0] if len(groups) == 1 else None,
        )
        if scheme is None:
            raise UnreadableError(f"no group of its settings is for {module!r}")
        said = scheme.format or settings.format
        known = (*_PLAIN_NUMBERS, _PACKED_INTEGERS, *_FP4, _MXFP8)
        form = said if said in known else infer_module_format(torch.nn.Linear, scheme)
        weights.append(_weight(module, str(getattr(form, "value", form)), scheme, tensors))
    kinds = sorted({f"{one.format} (compressed-tensors)" for one in weights})
    return Found(", ".join(kinds), tuple(weights), frozenset(name for name in tensors if OF_ACTIVATIONS.search(name)))


def _refuse_more_than_quantised(options: Mapping[str, Any]) -> None:
    sparsity = options.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise UnreadableError(f"its weights are sparse, too ({sparsity['format']})")
    if (options.get("transform_config") or {}).get("config_groups"):
        raise UnreadableError("its weights are rotated, too (transform_config)")


def _weight(module: str, form: str, scheme: Any, tensors: Mapping[str, TensorInfo]) -> CompressedWeight:
    is_byte = form in (*_PLAIN_NUMBERS, _MXFP8)
    if not is_byte and form not in (_PACKED_INTEGERS, *_FP4):
        raise UnreadableError(f"the format {form} is not known here")
    main = tensors[f"{module}.{'weight' if is_byte else 'weight_packed'}"]
    if len(main.shape) != 2:
        raise UnreadableError(f"{main.name!r} is no matrix")
    further = ["weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale", "weight_shape"]
    parts = {"main": main, **{one: tensors[f"{module}.{one}"] for one in further if f"{module}.{one}" in tensors}}
    args, scale = scheme.weights, parts["weight_scale"]
    rows, columns = main.shape[0], main.shape[1]
    if form == _PACKED_INTEGERS:
        columns *= _OF_INT32 // args.num_bits
        if args.group_size and args.group_size > 0 and len(scale.shape) == 2:
            columns = scale.shape[1] * args.group_size  # without what fills up the last number
    elif form in _FP4:
        columns *= 2
    scale_rows, block = _scale_rows(args, scale, rows, columns), 1
    if form == _PACKED_INTEGERS and "weight_zero_point" in parts:
        block = _OF_INT32 // args.num_bits
    return CompressedWeight(
        f"{module}.weight",
        (rows, columns),
        parts,
        lcm(block, max(1, scale_rows)),
        form,
        scheme.model_dump_json(),
        scale_rows,
    )


def _scale_rows(args: Any, scale: TensorInfo, rows: int, columns: int) -> int:
    """Rows that share a scale; 0 where all do."""
    strategy = str(getattr(args.strategy, "value", args.strategy))
    if scale.numel == 1 and strategy == "tensor":
        return 0
    if strategy == "block":
        height, width = args.block_structure
        require_shape(scale, (-(-rows // height), -(-columns // width)))
        return int(height)
    if strategy not in ("channel", "group", "tensor_group"):
        raise UnreadableError(f"scales by {strategy} are not known here")
    per_row = 1 if strategy == "channel" else -(-columns // args.group_size)
    require_shape(scale, (rows, per_row))
    return 1
