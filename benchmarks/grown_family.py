"""Write a larger family that answers as the built-in one does: its base and specialists, grown.

    python benchmarks/grown_family.py FOLDER --wide 2                0.5 billion parameters
    python benchmarks/grown_family.py FOLDER --wide 3 --layers 36    1.2 billion

A model computes what the small one computes: its tensors stand in the corners of larger ones, whose other entries are
random, but for those that would write to the residual stream, which are 0. So answers have the lengths that real ones
have, and merges are of numbers that real merges have; sizes, times and memory are those of the larger model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.checkpoints.tensor_files import Shape, write_tensors
from mergebench_ray.config import Suite
from mergebench_ray.suites import smollm2_mini

_DRAWN = 1 << 24  # numbers that the random entries are made of, again and again
_MAX_FILE_BYTES = 5 << 30
_WIDER = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_BESIDE = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_WRITE = ("embed_tokens", "o_proj", "down_proj")
"""Tensors that write to the residual stream: nothing of a new channel, layer or head."""


def grown_config(config: dict[str, Any], wide: int, layers: int) -> dict[str, Any]:
    """The configuration of the grown model; a norm's mean is over more channels, all new ones 0."""
    wider = {key: wide * config[key] for key in _WIDER}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kept = {**config, "head_dim": head, "rms_norm_eps": config["rms_norm_eps"] / wide}
    return {**kept, **wider, "num_hidden_layers": layers}


def grown_shapes(model: Checkpoint, wide: int, layers: int) -> dict[str, Shape]:
    """Its tensors; those of new layers are like the first layer's."""
    shapes: dict[str, Shape] = {}
    for name, info in model.tensors.items():
        vocabulary, *others = info.shape
        wider = (vocabulary if "embed_tokens" in name else wide * vocabulary, *(wide * size for size in others))
        shapes[name] = wider
        if ".layers.0." in name:
            shapes |= {name.replace(".0.", f".{layer}."): wider for layer in range(model.num_layers, layers)}
    return shapes


def grown_tensor(model: Checkpoint, name: str, shape: Shape, wide: int, numbers: Tensor) -> Tensor:
    """A tensor, flat: the small one in its corner, if there is one.

    What reads may read anything of channels that are 0, and what is computed for new heads is read by nobody.
    """
    if len(shape) == 1:
        large = torch.ones(shape)
    elif any(one in name for one in _WRITE):
        large = torch.zeros(shape)
    else:
        large = numbers.repeat(-(-prod(shape) // _DRAWN))[: prod(shape)].view(shape).clone()
    if name in model.tensors:
        small_shape = model.tensors[name].shape
        small = model.read(name).float().view(small_shape)
        large[tuple(slice(size) for size in small_shape)] = small / wide**0.5 if "norm" in name else small
    return large.flatten()


def write_grown(model: Checkpoint, folder: Path, wide: int, layers: int, seed: int) -> None:
    """Write a grown model, with the small one's tokenizer; one that is there stays."""
    if folder.exists():
        return
    part = folder.with_suffix(".part")
    part.mkdir(parents=True)
    base = 0.02 * torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0))
    drawn = base + 0.0002 * torch.randn(_DRAWN, generator=torch.Generator().manual_seed(seed)) * (seed > 0)
    shapes = grown_shapes(model, wide, layers)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for place, (name, shape) in enumerate(shapes.items()):
            yield name, grown_tensor(model, name, shape, wide, drawn.roll(-104_729 * place)).bfloat16()

    write_tensors(part, {name: (shape, torch.bfloat16) for name, shape in shapes.items()}, tensors(), _MAX_FILE_BYTES)
    for file in model.tokenizer_folder.iterdir():
        if file.name in _BESIDE:
            shutil.copy(file, part)
    (part / "config.json").write_text(json.dumps(grown_config(model.config, wide, layers), indent=2))
    part.rename(folder)


def main() -> None:
    """Write base and specialists into folders of their own, by their names in the suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wide", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--specialists", type=int, default=5)
    given = parser.parse_args()
    suite = Suite.load(smollm2_mini.NAME)
    assert suite.base is not None
    models = {"base": suite.base, **dict(list(suite.specialists.items())[: given.specialists])}
    for seed, (name, reference) in enumerate(models.items()):
        write_grown(resolve(reference), given.folder / name, given.wide, given.layers, seed)
        size = sum(file.stat().st_size for file in (given.folder / name).iterdir())
        print(given.folder / name, f"{size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
