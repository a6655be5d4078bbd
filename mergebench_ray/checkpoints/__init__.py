"""Checkpoints: found by reference, read by byte range, checked before they are loaded, written as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.checkpoints.accompanying_files import check_accompanying_files
    from mergebench_ray.checkpoints.card import evaluation_result, model_card
    from mergebench_ray.checkpoints.checkpoint import (
        Checkpoint,
        TensorInfo,
        fill_in_shape_of,
        read_in_shape_of,
        require_finite,
    )
    from mergebench_ray.checkpoints.compatible import check_compatible, fit, fit_tensors
    from mergebench_ray.checkpoints.merged import merged_names, streamed_names
    from mergebench_ray.checkpoints.resolving import resolve
    from mergebench_ray.checkpoints.tensor_files import TensorFiles, TensorWriter
    from mergebench_ray.checkpoints.writer import reserved_model, write_model

__all__ = [
    "Checkpoint",
    "TensorFiles",
    "TensorInfo",
    "TensorWriter",
    "check_accompanying_files",
    "check_compatible",
    "evaluation_result",
    "fill_in_shape_of",
    "fit",
    "fit_tensors",
    "merged_names",
    "model_card",
    "read_in_shape_of",
    "require_finite",
    "reserved_model",
    "resolve",
    "streamed_names",
    "write_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "TensorFiles": "tensor_files",
        "TensorInfo": "checkpoint",
        "TensorWriter": "tensor_files",
        "check_accompanying_files": "accompanying_files",
        "check_compatible": "compatible",
        "evaluation_result": "card",
        "fill_in_shape_of": "checkpoint",
        "fit": "compatible",
        "fit_tensors": "compatible",
        "merged_names": "merged",
        "model_card": "card",
        "read_in_shape_of": "checkpoint",
        "require_finite": "checkpoint",
        "reserved_model": "writer",
        "resolve": "resolving",
        "streamed_names": "merged",
        "write_model": "writer",
    },
)
