"""What a shard has merged: on its device, where passes write it, and in host memory, where other processes read it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

from mergebench_ray.weights.device_memory import DeviceMemory
from mergebench_ray.weights.memory_file import CardMemory, MemoryFile, pin, unpin


class Output:
    """Merged parameters [size], bf16. On a GPU they come into host memory when that is asked for.

    Args:
        size: parameters of the shard.
        device: of the shard.

    Attributes:
        path: memory file of what is in host memory.
        problem: what makes it slower than it could be, or None.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._file = MemoryFile(size)
        self._file.touch()
        self.path = self._file.path
        self._memory: MemoryFile | CardMemory = self._file
        self.problem: str | None = None
        if device.type == "cuda":
            self._memory = CardMemory(size, device, self.path)
            self.problem = pin(self._file.tensor)
        self._unpublished: set[tuple[int, int]] = set()
        self._noting = threading.Lock()
        self._publishing = threading.Lock()

    @property
    def tensor(self) -> Tensor:
        """[size] on the device; merges write here, and say what they have `written`."""
        return self._memory.tensor

    @property
    def publishes(self) -> bool:
        """Whether host memory is another one than the device's, which only `publish` writes."""
        return self._memory is not self._file

    @property
    def published(self) -> Tensor:
        """[size] in host memory."""
        return self._file.tensor

    def shared(self) -> DeviceMemory:
        """Where `tensor` is, for one other process of this node that has the device."""
        return self._memory.shared()

    def written(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take note of [first, one past the last) that have changed; they are there for other processes then."""
        if self.publishes:
            # First: what is noted may be copied at once by another thread, for the last time.
            self._synchronise()
            self._note(ranges)

    def publish(self) -> None:
        """Bring what has changed into host memory; from any thread, while another one writes and says so too."""
        with self._publishing:
            with self._noting:
                changed, self._unpublished = self._unpublished, set()
            try:
                for start, stop in changed:
                    self._file.tensor[start:stop].copy_(self.tensor[start:stop], non_blocking=True)
                self._synchronise()
            except BaseException:
                self._note(changed)
                raise

    def close(self) -> None:
        """Give the host memory back, where the process goes on."""
        if self.tensor.device.type == "cuda" and self.problem is None:
            unpin(self._file.tensor)
        self._file.close()

    def _note(self, ranges: Iterable[tuple[int, int]]) -> None:
        with self._noting:
            self._unpublished.update(ranges)

    def _synchronise(self) -> None:
        if self.tensor.device.type == "cuda":
            torch.cuda.synchronize(self.tensor.device)
