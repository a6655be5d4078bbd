"""Checkpoints: found by reference, read by byte range, checked before they are loaded, written as a stream."""

from __future__ import annotations

from mergebench_ray.checkpoints.card import model_card
from mergebench_ray.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    TensorInfo,
    require_finite,
)
from mergebench_ray.checkpoints.compatible import check_compatible
from mergebench_ray.checkpoints.resolve import resolve
from mergebench_ray.checkpoints.roles import counts_for_threshold, is_merged
from mergebench_ray.checkpoints.writer import write_model

__all__ = [
    "Checkpoint",
    "Progress",
    "TensorInfo",
    "check_compatible",
    "counts_for_threshold",
    "is_merged",
    "model_card",
    "require_finite",
    "resolve",
    "write_model",
]
