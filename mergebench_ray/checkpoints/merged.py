"""Which tensors of a base and its specialists a merge takes."""

from __future__ import annotations

from collections.abc import Collection

from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.families.family import counts_for_threshold, is_buffer, is_merged


def merged_names(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    """The tensors that are merged: all but embeddings, head and masks, in floating point, not empty, in every model."""
    return [name for name in _comparable(base, specialists) if is_merged(name)]


def streamed_names(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    """The tensors that count for global thresholds but are not merged: an output head of its own."""
    return [name for name in _comparable(base, specialists) if counts_for_threshold(name) and not is_merged(name)]


def _comparable(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    return [
        name
        for name, info in base.tensors.items()
        if info.dtype.is_floating_point
        and info.numel
        and not is_buffer(name)
        and all(name in one.tensors for one in specialists)
    ]
