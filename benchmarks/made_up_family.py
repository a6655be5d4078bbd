"""Write a family of made-up models: a base shaped like a public one, and specialists that are it with noise.

    python benchmarks/made_up_family.py FOLDER [--specialists 5] [--layers 26]

By default a model has the 2.6 billion parameters of Gemma-2-2B, 5.2 GB, so that base and five specialists are 31 GB.
They are for timing what reads them; no model is any good.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.checkpoints.tensor_files import Shape, write_tensors

HIDDEN, INNER, QUERIES, KEYS, VOCABULARY = 2304, 9216, 2048, 1024, 256_000
_DRAWN = 1 << 24  # numbers that a model is made of, again and again
_MAX_FILE_BYTES = 5 << 30


def shapes(layers: int) -> dict[str, Shape]:
    """The tensors of a Gemma-2."""
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (QUERIES, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, QUERIES),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "pre_feedforward_layernorm": (HIDDEN,),
        "post_feedforward_layernorm": (HIDDEN,),
    }
    every = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), **every, "model.norm.weight": (HIDDEN,)}


def write_family(folder: Path, specialists: int, layers: int) -> list[Path]:
    """Write base and specialists into folders of their own; those that are there stay."""
    base = 0.02 * torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0))
    folders = []
    for index in range(specialists + 1):
        change = 0.002 * torch.randn(_DRAWN, generator=torch.Generator().manual_seed(index)) if index else 0.0
        path = folder / (f"specialist_{index}" if index else "base")
        if not path.exists():
            _write(path, (base + change).bfloat16(), layers)
        folders.append(path)
    return folders


def _write(folder: Path, drawn: Tensor, layers: int) -> None:
    part = folder.with_suffix(".part")
    part.mkdir(parents=True)
    layout = {name: (shape, torch.bfloat16) for name, shape in shapes(layers).items()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for place, (name, shape) in enumerate(shapes(layers).items()):
            # Of another place for each tensor; a huge one is as many times the same.
            numbers = drawn.roll(-104_729 * place)
            yield name, numbers.repeat(-(-prod(shape) // _DRAWN))[: prod(shape)]

    write_tensors(part, layout, tensors(), _MAX_FILE_BYTES)
    config = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "dtype": "bfloat16",
        "head_dim": QUERIES // 8,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": KEYS // (QUERIES // 8),
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    (part / "config.json").write_text(json.dumps(config, indent=2))
    part.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--specialists", type=int, default=5)
    parser.add_argument("--layers", type=int, default=26)
    given = parser.parse_args()
    for path in write_family(given.folder, given.specialists, given.layers):
        print(path, f"{sum(file.stat().st_size for file in path.iterdir()) / 1e9:.2f} GB")
