"""Shapes, and whole families of checkpoints filled with random numbers, for the checks of this folder."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.rehearsal import llama_layout, llama_shapes
from mergebench_ray.checkpoints import Checkpoint, resolve

SPECIALISTS = [f"specialist {index}" for index in range(5)]
SHAPES = {  # layers, and the widths hidden, keys and inner
    "llama-3b": (28, 3072, 1024, 8192),
    "smollm2": (30, 576, 192, 1536),
    "tiny": (3, 64, 32, 96),
    "odd": (5, 61, 31, 97),  # nothing is a multiple of 8 entries: what a cut into shards does to any model
}
_VOCABULARY = 64  # embeddings are not merged, so a small one will do


def layout(shape: str, layers: int | None = None) -> Layout:
    """The flat order of a shape's merged tensors."""
    return llama_layout(_merged(shape, layers), layers or SHAPES[shape][0])


def write_family(
    folder: Path, shape: str, layers: int | None, device: torch.device
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Write a base and five specialists, drawn on a device, as folders of safetensors."""
    shapes = _merged(shape, layers)
    size = sum(prod(one) for one in shapes.values())
    base = random_bf16(size, 0.02, 0, device)
    found = []
    for index, name in enumerate(["base", *SPECIALISTS]):
        values = base.clone()
        if index:
            values += random_bf16(size, 0.002, index, device)
        target = folder / name
        target.mkdir(parents=True)
        parts = values.cpu().split([prod(one) for one in shapes.values()])
        tensors = {key: part.view(one) for (key, one), part in zip(shapes.items(), parts, strict=True)}
        tensors["model.embed_tokens.weight"] = torch.zeros(_VOCABULARY, SHAPES[shape][1], dtype=torch.bfloat16)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(_config(shape, layers)))
        found.append(resolve(str(target)))
    return found[0], dict(zip(SPECIALISTS, found[1:], strict=True))


def random_bf16(size: int, scale: float, seed: int, device: torch.device) -> Tensor:
    """Normal numbers, bf16 [size], without a float32 array of that size."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.empty(size, dtype=torch.bfloat16, device=device)
    for block in values.split(1 << 26):
        block.copy_(torch.randn(len(block), generator=generator, device=device) * scale)
    return values


def _merged(shape: str, layers: int | None) -> dict[str, tuple[int, ...]]:
    count, *widths = SHAPES[shape]
    return llama_shapes(layers or count, *widths)


def _config(shape: str, layers: int | None) -> dict[str, object]:
    count, hidden, _, inner = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers or count,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
