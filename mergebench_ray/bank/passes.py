"""What tells passes over weights apart."""

from __future__ import annotations

import torch

from mergebench_ray.kernels import BlockFunction


def pass_key(kernel: BlockFunction, out_dtype: torch.dtype) -> str:
    """All that a compiled pass depends on: functions of one name may read other companions."""
    function = kernel.function
    companions = kernel.companion, kernel.shared_companion
    return repr(
        (function.__module__, function.__qualname__, kernel.options, kernel.uses_position, companions, out_dtype)
    )
