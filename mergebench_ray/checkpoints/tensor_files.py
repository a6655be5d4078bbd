"""Sharded safetensors files written as a stream: headers first, then each tensor at its place, in any order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import is_finite
from mergebench_ray.checkpoints.model_files import INDEX_NAME
from mergebench_ray.checkpoints.safetensors_file import DTYPES, bytes_of
from mergebench_ray.errors import InputError
from mergebench_ray.progress import Progress

Shape = tuple[int, ...]
Stored = tuple[Shape, torch.dtype]
_WAITING_BYTES = 256 << 20
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    file_name: str
    position: int
    stored: Stored


class TensorFiles:
    """Safetensors files whose places are reserved, to be written in any order, a run of elements at a time.

    A context manager; several threads may write at once, and what is written twice is the same as written once. While
    it is open it may be pickled to other processes that see the folder.

    Args:
        folder: existing folder for the files.
        layout: name, and shape and type in the file, of every tensor that will come.
        max_file_bytes: most bytes of tensors a file; a larger tensor has a file of its own.
        keep_out_of_memory: have the system write what comes at once and forget it, not keep it in its file cache.

    Attributes:
        num_bytes: of all tensors.

    Raises:
        OSError: if the disk is too full.
    """

    def __init__(
        self, folder: Path, layout: Mapping[str, Stored], max_file_bytes: int, *, keep_out_of_memory: bool = False
    ) -> None:
        self.num_bytes = sum(map(_num_bytes, layout.values()))
        self._folder = folder
        self._layout = layout
        self._max_file_bytes = max_file_bytes
        self._keep_out_of_memory = keep_out_of_memory
        self._places: dict[str, _Place] = {}
        self._streams: dict[str, BinaryIO] = {}
        self._waiting: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_streams": {}}

    def __enter__(self) -> TensorFiles:
        groups = _split(self._layout, self._max_file_bytes)
        try:
            for number, names in enumerate(groups, start=1):
                file_name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
                self._streams[file_name] = stream = (self._folder / file_name).open("xb", buffering=0)
                # Wider types first, as readers want each tensor at a multiple of its type's size.
                names = sorted(names, key=lambda name: (-self._layout[name][1].itemsize, name))
                self._places |= _start_file(stream, file_name, {name: self._layout[name] for name in names})
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is None:
            file_names = {name: place.file_name for name, place in self._places.items()}
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": file_names}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / INDEX_NAME).write_text(text, encoding="utf-8")

    def _bring_to_disk(self, stream: BinaryIO, num_bytes: int) -> None:
        """Have so much of a file wait in memory at most, or the system would evict what others need there."""
        self._waiting[stream.name] = self._waiting.get(stream.name, 0) + num_bytes
        if self._waiting[stream.name] > _WAITING_BYTES:
            self._waiting[stream.name] = 0
            os.fdatasync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}

    def leave(self) -> None:
        """Have on disk what was written in a process that this was pickled to, and close the files there."""
        try:
            for stream in self._streams.values():
                os.fsync(stream.fileno())
        finally:
            self._close()

    def _stream(self, file_name: str) -> BinaryIO:
        """The open file; in a process that this was pickled to it is opened first."""
        if file_name not in self._streams:
            self._streams[file_name] = (self._folder / file_name).open("rb+", buffering=0)
        return self._streams[file_name]

    def write(self, name: str, first: int, values: Tensor) -> int:
        """Write the elements of a tensor from `first` on.

        Args:
            name: name of the tensor.
            first: place of the first of them in the flattened tensor.
            values: of any shape and type, on any device.

        Returns:
            bytes written.

        Raises:
            InputError: if there is NaN or infinity among them.
            ValueError: they leave the tensor.
        """
        place = self._places[name]
        shape, dtype = place.stored
        if first + values.numel() > prod(shape):
            raise ValueError(f"tensor {name!r} has {first + values.numel()} elements, its shape is {list(shape)}")
        written = as_written(name, values, dtype)
        if written.numel():
            position, stream = place.position + first * dtype.itemsize, self._stream(place.file_name)
            _write_at(stream, position, bytes_of(written))
            if self._keep_out_of_memory:
                self._bring_to_disk(stream, written.nbytes)
        return written.nbytes


class TensorWriter(Protocol):
    """Where a merge goes: `TensorFiles`, or memory."""

    def write(self, name: str, first: int, values: Tensor) -> int:
        """Take the elements of a tensor from `first` on; returns their bytes."""


def as_written(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """A merge's values, of any shape and on any device, as they are written: flat, on the CPU.

    Raises:
        InputError: if there is NaN or infinity among them.
    """
    written = values.detach().to("cpu", dtype).contiguous().flatten()
    if not is_finite(written):
        if is_finite(values):
            raise InputError(f"tensor {name!r} holds numbers that are too large for {dtype}; give a base without them")
        raise InputError(f"tensor {name!r} would be written with NaN or infinity; choose smaller coefficients")
    return written


def write_tensors(
    folder: Path,
    layout: Mapping[str, Stored],
    tensors: Iterable[tuple[str, Tensor]],
    max_file_bytes: int,
    progress: Progress | None = None,
) -> None:
    """Write safetensors files and their index, holding one tensor at a time.

    Args:
        folder: existing folder for the files.
        layout: name, and shape and type in the file, of every tensor that will come.
        tensors: each of them once, in any order, of any shape with the same number of elements, on any device.
        max_file_bytes: most bytes of tensors a file; a larger tensor has a file of its own.
        progress: told about the fraction written.

    Raises:
        InputError: if a tensor holds NaN or infinity.
        ValueError: if a tensor is unknown, comes twice, is missing at the end, or has another number of elements.
        OSError: if the disk is too full, before the first tensor is asked for.
    """
    missing = set(layout)
    with TensorFiles(folder, layout, max_file_bytes) as files:
        written = 0
        for name, tensor in tensors:
            if name not in missing:
                raise ValueError(f"tensor {name!r} was not announced, or comes twice")
            if tensor.numel() != prod(layout[name][0]):
                raise ValueError(f"tensor {name!r} has {tensor.numel()} elements, its shape is {list(layout[name][0])}")
            missing.remove(name)
            written += files.write(name, 0, tensor)
            if progress is not None:
                total = files.num_bytes
                progress(written / max(total, 1), f"written {written / 2**30:.2f} of {total / 2**30:.2f} GiB")
        if missing:
            raise ValueError(f"tensor {min(missing)!r} and {len(missing) - 1} more never came")


def written_dtype(dtype: torch.dtype, floats: torch.dtype = torch.bfloat16) -> torch.dtype:
    """The type that a model's tensor is written in: `floats` for floating point, its own for indices and masks."""
    return floats if dtype.is_floating_point else dtype


def _num_bytes(stored: Stored) -> int:
    shape, dtype = stored
    return prod(shape) * int(dtype.itemsize)


def _split(layout: Mapping[str, Stored], max_file_bytes: int) -> list[list[str]]:
    """Names by file, in sorted order."""
    groups: list[list[str]] = []
    room = 0
    for name in sorted(layout):
        size = _num_bytes(layout[name])
        if not groups or size > room:
            groups.append([])
            room = max_file_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _start_file(stream: BinaryIO, file_name: str, layout: Mapping[str, Stored]) -> dict[str, _Place]:
    """Write the header and reserve the file's space, so that a full disk shows at once."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in layout.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    os.posix_fallocate(stream.fileno(), 0, start + end)
    _write_at(stream, 0, memoryview(len(text).to_bytes(8, "little") + text))
    places = {}
    for name, stored in layout.items():
        places[name] = _Place(file_name, start, stored)
        start += _num_bytes(stored)
    return places


def _write_at(stream: BinaryIO, position: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(stream.fileno(), buffer[done:], position + done)
