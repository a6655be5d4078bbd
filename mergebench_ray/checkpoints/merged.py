"""Which tensors of a base and its specialists a merge takes."""

from __future__ import annotations

from collections.abc import Collection

from mergebench_ray.checkpoints.checkpoint import Checkpoint


def merged_names(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    """The tensors that are merged: in the parts that the base says, in floating point, not empty, in every model."""
    return [name for name in _comparable(base, specialists) if base.is_merged(name)]


def streamed_names(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    """The tensors that count for global thresholds but are not merged: an output head of its own."""
    return [
        name
        for name in _comparable(base, specialists)
        if base.family.counts_for_threshold(name, base.merged_parts) and not base.is_merged(name)
    ]


def _comparable(base: Checkpoint, specialists: Collection[Checkpoint]) -> list[str]:
    return [
        name
        for name, info in base.tensors.items()
        if info.dtype.is_floating_point
        and info.numel
        and not base.family.is_buffer(name)
        and all(name in one.tensors for one in specialists)
    ]
