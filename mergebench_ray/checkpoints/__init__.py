"""Checkpoints: found by reference, read by byte range, checked before they are loaded, written as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.checkpoints.accompanying_files import check_accompanying_files
    from mergebench_ray.checkpoints.card import model_card
    from mergebench_ray.checkpoints.checkpoint import (
        Checkpoint,
        Progress,
        TensorInfo,
        require_finite,
    )
    from mergebench_ray.checkpoints.compatible import check_compatible
    from mergebench_ray.checkpoints.resolving import resolve
    from mergebench_ray.checkpoints.roles import counts_for_threshold, is_merged
    from mergebench_ray.checkpoints.writer import write_model

__all__ = [
    "Checkpoint",
    "Progress",
    "TensorInfo",
    "check_accompanying_files",
    "check_compatible",
    "counts_for_threshold",
    "is_merged",
    "model_card",
    "require_finite",
    "resolve",
    "write_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "Progress": "checkpoint",
        "TensorInfo": "checkpoint",
        "check_accompanying_files": "accompanying_files",
        "check_compatible": "compatible",
        "counts_for_threshold": "roles",
        "is_merged": "roles",
        "model_card": "card",
        "require_finite": "checkpoint",
        "resolve": "resolving",
        "write_model": "writer",
    },
)
