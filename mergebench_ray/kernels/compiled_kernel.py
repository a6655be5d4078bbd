"""A compiled kernel, loaded from the folder of its package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.kernels.threads import torch_threads

_SMALL = 1 << 15


class CompiledKernel:
    """A compiled `BlockFunction`, from the folder of its package; called as `EagerKernel` is.

    Args:
        folder: of the package.
        device: where the arrays lie.
        uses_position: whether it is told positions.
        callers: threads that call it at once on a CPU; further ones wait.
    """

    def __init__(self, folder: Path, device: torch.device, uses_position: bool, callers: int = 1) -> None:
        from torch._C._aoti import AOTIModelPackageLoader

        index = -1 if device.type == "cpu" else (device.index or 0)
        # On a GPU, runs follow each other in one stream: the loader's own waiting for each to end is not needed.
        one_stream = device.type != "cpu"
        runners = 1 if one_stream else callers  # more of them, torch refuses there
        self._loader = AOTIModelPackageLoader(str(folder), "model", one_stream, runners, index)
        self._uses_position = uses_position

    def __call__(
        self,
        arrays: Sequence[Tensor],
        start: int,
        scalars: dict[str, Tensor],
        out: Tensor,
        threads: int,
    ) -> None:
        """Run over [n], in the form it was compiled for; other arguments as for `EagerKernel`."""
        position = [torch.full((1,), start, dtype=torch.int32, device=out.device)] if self._uses_position else []
        # Waking threads for a norm's few hundred entries takes longer than computing them.
        with torch_threads(threads if len(out) > _SMALL else 1):
            self._loader.run([*arrays, *position, *scalars.values(), out])
