"""Memory that other processes of the node can map, and that is gone when its last user is, however that one ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.errors import one_line
from mergebench_ray.weights.device_memory import ELSEWHERE, DeviceMemory, device_name, on_gpu, opened, owner_of, share

_HOST = torch.device("cpu")
_own: dict[str, Tensor] = {}
"""What this process has mapped of its own: what is mapped twice counts twice as its memory."""


class MemoryFile:
    """An anonymous file in memory, as a flat tensor.

    Args:
        size: number of elements.
        dtype: their type.

    Attributes:
        path: where other processes of this node can open it, as long as this process lives.
        tensor: [size] of that type, zero until something is written.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self._descriptor = os.memfd_create("mergebench_ray")
        os.ftruncate(self._descriptor, max(size, 1) * dtype.itemsize)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.tensor: Tensor = map_memory(self.path, size, dtype)
        _own[self.path] = self.tensor

    def shared(self) -> DeviceMemory:
        """Where other processes of this node open it."""
        return DeviceMemory(device_name(self.tensor.device), self.path)

    def touch(self) -> None:
        """Write zeros once, so that what is written first pays for no page faults."""
        self.tensor.zero_()

    def close(self) -> None:
        """Give the memory back once nobody maps it any more."""
        _own.pop(self.path, None)
        os.close(self._descriptor)


class CardMemory:
    """Memory of a GPU, as a flat tensor.

    Args:
        size: number of elements.
        device: the GPU.
        owner: a file that is there as long as this memory is.

    Attributes:
        tensor: [size], bf16.
    """

    def __init__(self, size: int, device: torch.device, owner: str) -> None:
        self.tensor = torch.empty(max(size, 1), dtype=torch.bfloat16, device=device)[:size]
        self._owner = owner

    def shared(self) -> DeviceMemory:
        """Where one other process of this node, which has this GPU, opens it; each asks for itself."""
        device = device_name(self.tensor.device)
        try:
            return DeviceMemory(device, share(self.tensor, self._owner))
        except RuntimeError as error:
            return DeviceMemory(device, "", one_line(error))


def map_memory(path: str, size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The first elements of a memory file, [size], shared with its owner."""
    return torch.from_file(path, shared=True, size=max(size, 1), dtype=dtype)[:size]


def pin(memory: Tensor) -> str | None:
    """Let a GPU reach mapped memory directly: copies are several times faster, and need not be waited for one by one.

    Returns:
        why it could not be done, in one line, or None. Copies are slower then.
    """
    runtime = torch.cuda.cudart()
    status = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) if memory.numel() else 0
    if status == 0:
        return None
    # CUDA remembers the error and would blame the next kernel for it; asking for one that does nothing forgets it.
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    return f"memory for merged weights could not be pinned (CUDA error {status}): copies from the GPU are slower"


def unpin(memory: Tensor) -> None:
    """Undo `pin`, before the memory is given back."""
    if memory.numel():
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


class MappedFiles:
    """Memory of other processes, mapped once and kept between candidates.

    Args:
        device: the device whose memory may be among it.
    """

    def __init__(self, device: torch.device = _HOST) -> None:
        self._device = device
        self._mapped: dict[str, tuple[os.stat_result, torch.Tensor]] = {}

    def open(self, memory: DeviceMemory) -> str:
        """Open memory of this device before anything of it is read: an `Opener`."""
        self.forget_dead()  # a GPU that holds a shard once has no room for it twice
        if memory.device != (mine := device_name(self._device)):
            return f"{ELSEWHERE} {memory.device}, and {mine} is here"
        try:
            if memory.path not in _own:
                self._content(memory.path)
        except (OSError, RuntimeError, ValueError) as error:
            return one_line(error)
        return ""

    def read(self, shape: Sequence[int], dtype: torch.dtype, pieces: Sequence[Sequence[Any]]) -> torch.Tensor:
        """A tensor made of pieces; a view of the memory file where there is only one piece.

        Raises:
            OSError: if memory is gone, as when its owner died.
            ValueError: if the pieces do not make up the shape, or lie outside their file.
        """
        parts = [self._piece(path, offset, count, dtype) for path, offset, count in pieces]
        if sum(len(part) for part in parts) != prod(shape):
            raise ValueError(f"pieces hold {sum(len(p) for p in parts)} elements, shape {list(shape)} needs others")
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(tuple(shape))

    def _piece(self, path: str, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        start, stop = offset * dtype.itemsize, (offset + count) * dtype.itemsize
        content = _own[path].view(torch.uint8) if path in _own else self._content(path)
        if not 0 <= start <= stop <= len(content):
            raise ValueError(f"elements {offset} to {offset + count} lie outside {path}")
        return content[start:stop].view(dtype)

    def _content(self, path: str) -> torch.Tensor:
        # CUDA would say of a dead owner's memory only that something is wrong.
        owner = owner_of(path)
        if path not in self._mapped or not os.path.samestat(self._mapped[path][0], owner):
            if on_gpu(path):
                content = opened(path, self._device)
            else:
                content = torch.from_file(path, shared=True, size=owner.st_size, dtype=torch.uint8)
            self._mapped[path] = owner, content
        return self._mapped[path][1]

    def forget_dead(self) -> None:
        """Unmap what an owner had that has gone, so that their memory is freed."""
        self._mapped = {path: mapped for path, mapped in self._mapped.items() if _is_owned(path, mapped[0])}


def _is_owned(path: str, owner: os.stat_result) -> bool:
    try:
        return os.path.samestat(owner_of(path), owner)
    except OSError:
        return False
