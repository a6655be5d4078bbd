"""Tensors that an engine can load from a checkpoint: how specialists are scored as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mergebench_ray.checkpoints import Checkpoint, read_in_shape_of
from mergebench_ray.families import ModelFamily
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.manifest import WeightTensor
from mergebench_ray.weights.stream import WeightStream

_READ_BLOCK = 1 << 22


def checkpoint_weights(checkpoint: Checkpoint, base: Checkpoint) -> WeightStream:
    """All tensors of a checkpoint that the base has, embeddings too, read while they are loaded.

    Rows beyond the base's vocabulary are left out; where a checkpoint has fewer, the last ones are the base's.

    Args:
        checkpoint: compatible with the base.
        base: the model whose shapes the engine has.

    Returns:
        a manifest whose version is the checkpoint's digest.
    """

    def read(name: str) -> Iterator[Tensor]:
        count = base.tensors[name].numel
        for first in range(0, count, _READ_BLOCK):
            yield read_in_shape_of(base, checkpoint, name, first, min(_READ_BLOCK, count - first))

    # Masks and indices stay as the engine has them.
    shapes = {
        name: info.shape
        for name, info in base.tensors.items()
        if name in checkpoint.tensors and info.dtype.is_floating_point and info.numel
    }
    return stream_of(checkpoint.digest(), shapes, torch.bfloat16, base.family, read)


def stream_of(
    version: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    family: ModelFamily,
    read: Callable[[str], Iterator[Tensor]],
) -> WeightStream:
    """A manifest of tensors that are read one at a time.

    Args:
        version: of the manifest; with a tensor's name it stands for the tensor's content.
        shapes: by name.
        dtype: type of the elements in memory.
        family: says which tensors make a layer.
        read: gives each tensor in runs of any type and shape, in order.
    """

    def bytes_of(tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        for tensor in tensors:
            for run in read(tensor.name):
                yield run.to(dtype).flatten().contiguous().view(torch.uint8).numpy()

    tensors = tuple(WeightTensor(name, shape, (), f"{version}/{name}") for name, shape in shapes.items())
    return WeightStream(version, str(dtype).removeprefix("torch."), tensors, family, bytes_of)
