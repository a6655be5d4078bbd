"""Tiny checkpoints written again as quantised ones, by the libraries' own arithmetic where they have it on a CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

Parts = dict[str, Tensor]
Quantise = Callable[[Tensor], tuple[Parts, Tensor]]
"""From a matrix to what is stored of it, by what follows its module's name, and what it is when it is read."""

_BLOCK = (32, 16)
_FP8 = FineGrainedFP8Config(weight_block_size=_BLOCK)
_LARGEST = 448.0  # of float8_e4m3fn


def fp8_blocks(weight: Tensor) -> tuple[Parts, Tensor]:
    quantizer = SimpleNamespace(quantization_config=_FP8)
    parts = Fp8Quantize(quantizer).convert({"m.weight": weight})
    stored = {name.removeprefix("m"): one for name, one in parts.items()}
    plain = Fp8Dequantize(quantizer).convert(
        {"weight$": stored[".weight"], "weight_scale_inv": stored[".weight_scale_inv"]}
    )
    return stored, plain["weight"]


def fp8_tensor(weight: Tensor) -> tuple[Parts, Tensor]:
    scale = weight.float().abs().max() / _LARGEST
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    parts = {".weight": stored, ".weight_scale": scale, ".input_scale": torch.tensor(2.0)}
    return parts, stored.float() * scale


def fp8_partial_blocks(weight: Tensor) -> tuple[Parts, Tensor]:
    """Blocks of 40 rows and 48 columns, smaller ones at the end, as DeepSeek's have them."""
    rows, columns = weight.shape
    scales = torch.rand(-(-rows // 40), -(-columns // 48)) + 0.5
    stored = weight.float().to(torch.float8_e4m3fn)
    by_entry = scales.repeat_interleave(40, 0)[:rows].repeat_interleave(48, 1)[:, :columns]
    return {".weight": stored, ".weight_scale_inv": scales}, stored.float() * by_entry


def compressed(form: str, **weights: Any) -> Quantise:
    """In a format of compressed-tensors."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=form)
    args = scheme.weights
    assert args is not None
    strategy = str(args.strategy)
    largest = {"float": {4: 6.0, 8: _LARGEST}}.get(args.type, {}).get(args.num_bits, 2.0 ** (args.num_bits - 1) - 1)

    def quantise(weight: Tensor) -> tuple[Parts, Tensor]:
        weight = weight.float()
        rows, columns = weight.shape
        height, width = {
            "tensor": (rows, columns),
            "channel": (1, columns),
            "block": tuple(args.block_structure or ()),
        }.get(strategy, (1, args.group_size))
        grouped = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        grouped = grouped.unflatten(1, (-1, width)).unflatten(0, (-1, height))
        scale = (grouped.abs().amax((1, 3)) / largest).bfloat16()
        state = {"weight": weight.bfloat16(), "weight_scale": scale.reshape(1) if strategy == "tensor" else scale}
        if strategy == "tensor_group":
            state["weight_global_scale"] = torch.tensor([3.0])
            state["weight_scale"] = scale * 3
        if not args.symmetric:
            state["weight_zero_point"] = torch.randint(-3, 4, scale.shape, dtype=torch.int8)
        compressor = BaseCompressor.get_value_from_registry(form)
        if form.startswith("mx"):
            state["weight_scale"] = scale.float().log2().ceil().exp2().bfloat16()
        with torch.compiler.set_stance("force_eager"):  # it would take half a minute to compile
            stored = compressor.compress(state, scheme)
        plain = compressor.decompress(stored, scheme)["weight"]
        return {f".{name}": one.contiguous() for name, one in stored.items()}, plain

    return quantise


def gptq(bits: int, group_size: int, *, in_order: bool = True, version: str = "gptq") -> Quantise:
    """Integers and zero points as they are packed along the inputs."""

    def quantise(weight: Tensor) -> tuple[Parts, Tensor]:
        outputs, inputs = weight.shape
        size, middle = (inputs if group_size == -1 else group_size), 1 << (bits - 1)
        numbers = torch.randint(0, 2 * middle, (inputs, outputs))
        zeros = torch.randint(1, 2 * middle, (inputs // size, outputs))
        scales = (torch.rand(inputs // size, outputs) / middle).half()
        groups = torch.arange(inputs) // size
        if not in_order:
            groups = groups[torch.randperm(inputs)]
        stored = zeros - 1 if version == "gptq" else zeros
        parts = {
            ".qweight": pack_to_int32((numbers - middle).to(torch.int8), bits, packed_dim=0).contiguous(),
            ".qzeros": pack_to_int32((stored - middle).to(torch.int8), bits, packed_dim=1),
            ".scales": scales,
            ".g_idx": groups.int(),
        }
        return parts, ((numbers - zeros[groups]).half() * scales[groups]).T

    return quantise


def awq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Eight numbers in an int32, in AutoAWQ's order, groups of 32 inputs."""
    outputs, inputs = weight.shape
    numbers, zeros = torch.randint(0, 16, (inputs, outputs)), torch.randint(0, 16, (inputs // 32, outputs))
    scales = (torch.rand(inputs // 32, outputs) / 8).half()

    def packed(values: Tensor) -> Tensor:
        in_order = values.unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return (in_order << torch.arange(0, 32, 4)).sum(2).to(torch.int32)

    parts = {".qweight": packed(numbers), ".qzeros": packed(zeros), ".scales": scales}
    groups = torch.arange(inputs) // 32
    return parts, ((numbers - zeros[groups]).half() * scales[groups]).T


def int8(weight: Tensor) -> tuple[Parts, Tensor]:
    """As bitsandbytes stores eight bits."""
    scale = weight.float().abs().amax(1)
    stored = (weight.float() * 127 / scale[:, None]).round().to(torch.int8)
    parts = {".weight": stored, ".SCB": scale, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, stored * scale[:, None] * (1 / 127)


def nf4(weight: Tensor) -> tuple[Parts, Tensor]:
    """By bitsandbytes itself, scales quantised, too."""
    from bitsandbytes import functional

    stored, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = {f".weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    return {".weight": stored, **parts}, functional.dequantize_4bit(stored, state)


def compressed_settings(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


_COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "float by channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float by tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "float by block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
    ),
    "int by channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "packed": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    "packed with zeros": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
    "mxfp8": ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
    "nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
}
KINDS: dict[str, tuple[Quantise, dict[str, Any]]] = {
    "fp8 blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": list(_BLOCK)}),
    "fp8 partial blocks": (fp8_partial_blocks, {"quant_method": "fp8", "weight_block_size": [40, 48]}),
    "fp8 tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
    "gptq": (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq in another order": (
        gptq(4, 32, in_order=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    ),
    "gptq of eight bits": (
        gptq(8, -1, version="gptq_v2"),
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
    "int8 of bitsandbytes": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    **{kind: (compressed(form, **one), compressed_settings(form, **one)) for kind, (form, one) in _COMPRESSED.items()},
}


def quantised(base: Path, folder: Path, kind: str) -> dict[str, Tensor]:
    """Write a model with its layers' matrices quantised, and give what all its tensors are when they are read."""
    quantise, settings = KINDS[kind]
    torch.manual_seed(0)
    expected, stored = {}, {}
    for name, values in load_file(base / "model.safetensors").items():
        if name.endswith("proj.weight"):
            parts, plain = quantise(values)
            stored |= {name.removesuffix(".weight") + end: one for end, one in parts.items()}
            expected[name] = plain.bfloat16()
        else:
            stored[name] = expected[name] = values
    shutil.copytree(base, folder)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return expected
