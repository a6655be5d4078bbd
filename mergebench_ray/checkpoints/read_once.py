"""A checkpoint whose digest is made while its bytes are read for something else, so that nothing is read twice."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo, require_finite
from mergebench_ray.checkpoints.digest import digest_entries
from mergebench_ray.checkpoints.folder import FolderCheckpoint
from mergebench_ray.checkpoints.safetensors_file import bytes_of, read_elements_into
from mergebench_ray.progress import Progress, silent

_BLOCK_BYTES = 8 << 20
_OF_NOTHING = hashlib.sha256().hexdigest()


class ReadOnce(Checkpoint):
    """A folder's weights, hashed as they are read.

    Whoever reads a tensor from its first element to its last has hashed it; any other order only means that `finish`
    reads the rest again. Whoever reads must refuse NaN and infinity, as a remembered digest says that there are none.

    Args:
        checkpoint: what is read.
    """

    def __init__(self, checkpoint: FolderCheckpoint) -> None:
        self.ref, self.config, self.tensors = checkpoint.ref, checkpoint.config, checkpoint.tensors
        self.notes, self.corrected_settings = checkpoint.notes, checkpoint.corrected_settings
        self.merged_parts = checkpoint.merged_parts
        self._checkpoint = checkpoint
        self._entries = [entry for entry in digest_entries(checkpoint.tensors) if entry.remembered is None]
        names = [name for entry in self._entries for name in entry.names]
        self._growing = {name: _GrowingDigest(self.tensors[name].num_bytes) for name in names}

    def __getstate__(self) -> dict[str, Any]:
        # Who it is sent to hashes what nobody has hashed yet.
        left = {name: growing for name, growing in self._growing.items() if growing.num_left}
        return {**self.__dict__, "_growing": left}

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return self._checkpoint.folder

    def fetch(self, progress: Progress = silent) -> None:
        """Have the checkpoint's files on this node."""
        self._checkpoint.fetch(progress)

    @property
    def is_known(self) -> bool:
        """Whether `digest` has nothing to read any more."""
        return not self._entries

    def digest(self) -> str:
        """SHA-256 of the weights."""
        return self._checkpoint.digest()

    def unread(self) -> dict[str, int]:
        """Tensors that the digest still needs: how many bytes nobody has read."""
        return {name: growing.num_left for name, growing in self._growing.items() if growing.num_left}

    def read_rest(self, name: str, between: Callable[[], None] = lambda: None) -> None:
        """Read what nobody has read of a tensor.

        Args:
            name: the tensor.
            between: called every few megabytes.

        Raises:
            InputError: NaN or infinity, naming file and tensor; a file that has changed.
        """
        info, growing = self.tensors[name], self._growing[name]
        step = _BLOCK_BYTES // info.dtype.itemsize
        values = torch.empty(min(step, info.numel), dtype=info.dtype)
        for start in range(growing.position // info.dtype.itemsize, info.numel, step):
            between()
            part = values[: min(step, info.numel - start)]
            read_elements_into(info, start, part)
            require_finite(info.file, name, part)
            growing.update(start * info.dtype.itemsize, bytes_of(part))

    def finished(self) -> list[tuple[str, str]]:
        """Tensors that were read to their ends by now, with their digests."""
        return [(name, one.digest) for name, one in self._growing.items() if one.digest is not None]

    def take(self, name: str, digest: str) -> None:
        """Take a tensor's digest from who has read it."""
        self._growing[name].take(digest)

    def remember(self) -> None:
        """Keep the digests, once nothing is unread."""
        for entry in self._entries:
            entry.remember({name: self._growing[name].digest or _OF_NOTHING for name in entry.names})
        self._entries, self._growing = [], {}

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        values = torch.empty(count, dtype=info.dtype)
        read_elements_into(info, start, values)
        self._see(info, start, values)
        return values

    def _read_range_into(self, info: TensorInfo, start: int, out: Tensor) -> None:
        if out.dtype == info.dtype:
            read_elements_into(info, start, out)
            self._see(info, start, out)
        else:
            super()._read_range_into(info, start, out)

    def _see(self, info: TensorInfo, start: int, values: Tensor) -> None:
        growing = self._growing.get(info.name)
        if growing is not None and len(values):
            growing.update(start * info.dtype.itemsize, bytes_of(values))


def hashed_as_read(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as `ReadOnce` where it can be; an adapter's own bytes are few, and hashed apart."""
    return ReadOnce(checkpoint) if isinstance(checkpoint, FolderCheckpoint) else checkpoint


def digests_are_remembered(checkpoints: Iterable[Checkpoint]) -> bool:
    """Whether the digests of checkpoints can be had without reading their weights."""
    return all(ReadOnce(one).is_known for one in checkpoints if isinstance(one, FolderCheckpoint))


class _GrowingDigest:
    """SHA-256 of a tensor's bytes so far, from the first on.

    Attributes:
        position: bytes so far.
        digest: of all bytes; None until they were read. A tensor without bytes has none.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._so_far = hashlib.sha256()
        self._lock = threading.Lock()
        self.position = 0
        self.digest: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Who it is sent to begins anew.
        return type(self), (self._num_bytes,)

    @property
    def num_left(self) -> int:
        """Bytes that nobody has read."""
        return self._num_bytes - self.position

    def update(self, position: int, block: memoryview) -> None:
        """Take bytes that begin at a position; what does not follow on those so far is passed over."""
        with self._lock:
            skip = self.position - position
            if 0 <= skip < len(block):
                self._so_far.update(block[skip:])
                self.position = position + len(block)
                if not self.num_left:
                    self.digest = self._so_far.hexdigest()

    def take(self, digest: str) -> None:
        """Take the digest from who has read all bytes."""
        with self._lock:
            self.position, self.digest = self._num_bytes, digest
