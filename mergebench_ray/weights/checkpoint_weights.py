"""Tensors in memory that an engine can load from: how base and specialists are scored as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from mergebench_ray.checkpoints import Checkpoint, read_in_shape_of
from mergebench_ray.weights.manifest import Piece, WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import MemoryFile


@contextmanager
def checkpoint_in_memory(checkpoint: Checkpoint, base: Checkpoint) -> Iterator[WeightManifest]:
    """Write all tensors of a checkpoint that the base has, embeddings too, into a memory file; it is freed at the end.

    Rows beyond the base's vocabulary are left out; where a checkpoint has fewer, the last ones are the base's. The file
    goes with this process, whatever ends it.

    Args:
        checkpoint: compatible with the base.
        base: the model whose shapes the engine has.

    Yields:
        the manifest; its version is the checkpoint's digest.
    """

    def read(name: str) -> Tensor:
        return read_in_shape_of(base, checkpoint, name, 0, base.tensors[name].numel)

    # Masks and indices stay as the engine has them.
    shapes = {
        name: info.shape
        for name, info in base.tensors.items()
        if name in checkpoint.tensors and info.dtype.is_floating_point and info.numel
    }
    with tensors_in_memory(checkpoint.digest(), shapes, torch.bfloat16, read) as manifest:
        yield manifest


@contextmanager
def tensors_in_memory(
    version: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, read: Callable[[str], Tensor]
) -> Iterator[WeightManifest]:
    """Write tensors into a memory file, one at a time; it is freed at the end, or with this process.

    Args:
        version: of the manifest; with a tensor's name it stands for the tensor's content.
        shapes: by name.
        dtype: type of the elements in memory.
        read: gives each tensor, of any shape and type.

    Yields:
        the manifest.
    """
    file = MemoryFile(sum(map(prod, shapes.values())), dtype)
    try:
        tensors, offset = [], 0
        for name, shape in shapes.items():
            count = prod(shape)
            file.tensor[offset : offset + count] = read(name).flatten()
            piece = Piece(path=file.path, offset=offset, count=count)
            tensors.append(WeightTensor(name, shape, (piece,), f"{version}/{name}"))
            offset += count
        yield WeightManifest(version=version, dtype=str(dtype).removeprefix("torch."), tensors=tuple(tensors))
    finally:
        file.close()
