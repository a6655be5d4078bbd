"""Memory that other processes of the node can map, and that is gone when its last user is, however that one ends."""

from __future__ import annotations

import os

import torch
from torch import Tensor


class MemoryFile:
    """An anonymous file in memory, as a flat bf16 tensor.

    Args:
        size: number of elements.

    Attributes:
        path: where other processes of this node can open it, as long as this process lives.
        tensor: bf16 [size], touched once so that the first merge pays for no page faults.
    """

    def __init__(self, size: int) -> None:
        self._descriptor = os.memfd_create("mergebench_ray")
        os.ftruncate(self._descriptor, max(size, 1) * torch.bfloat16.itemsize)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.tensor: Tensor = map_memory(self.path, size)
        self.tensor.zero_()

    def close(self) -> None:
        """Give the memory back once nobody maps it any more."""
        os.close(self._descriptor)


def map_memory(path: str, size: int) -> Tensor:
    """The content of a memory file, bf16 [size], shared with its owner."""
    return torch.from_file(path, shared=True, size=max(size, 1), dtype=torch.bfloat16)[:size]
