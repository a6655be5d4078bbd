"""A checkpoint as it is, in memory that an engine can load from: how base and specialists are scored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch

from mergebench_ray.checkpoints import Checkpoint, require_finite
from mergebench_ray.config import Piece, WeightManifest, WeightTensor


@contextmanager
def checkpoint_in_memory(checkpoint: Checkpoint, base: Checkpoint) -> Iterator[WeightManifest]:
    """Write all tensors of a checkpoint that the base has, embeddings too, into a memory file; it is freed at the end.

    Rows beyond the base's vocabulary are left out. The file goes with this process, whatever ends it.

    Args:
        checkpoint: compatible with the base.
        base: the model whose shapes the engine has.

    Yields:
        the manifest; its version is the checkpoint's digest.

    Raises:
        InputError: NaN or infinity in a tensor, naming checkpoint and tensor.
    """
    names = [name for name in base.tensors if name in checkpoint.tensors]
    counts = {name: prod(base.tensors[name].shape) for name in names}
    descriptor = os.memfd_create("mergebench_ray_checkpoint")
    try:
        total = sum(counts.values())
        os.ftruncate(descriptor, total * torch.bfloat16.itemsize)
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        memory = torch.from_file(path, shared=True, size=total, dtype=torch.bfloat16)
        version = checkpoint.digest()
        tensors, offset = [], 0
        for name in names:
            count = counts[name]
            values = checkpoint.read(name, 0, count).to(torch.bfloat16)
            require_finite(checkpoint, name, values)
            memory[offset : offset + count] = values
            piece = Piece(path=path, offset=offset, count=count)
            tensors.append(WeightTensor(name, base.tensors[name].shape, (piece,), f"{version}/{name}"))
            offset += count
        yield WeightManifest(version=version, dtype="bfloat16", tensors=tuple(tensors))
    finally:
        os.close(descriptor)
