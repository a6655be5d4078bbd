"""Headers and byte ranges of safetensors files; a broken or hostile file is refused before any tensor is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.file_state import FileState, as_seen
from mergebench_ray.checkpoints.json_files import parse_json
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular
from mergebench_ray.object_storage.fetched import RemoteFile
from mergebench_ray.object_storage.objects import read_range

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000
_FIRST_BYTES = 1 << 16
"""What is asked for first of a file whose header has an unknown length: longer than most headers."""
_BLOCK_ELEMENTS = 1 << 22
_MAX_DIMENSIONS = 64


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read the tensor index at the start of a safetensors file.

    Raises:
        InputError: if the file is missing, no regular file, truncated, or its header contradicts itself or its size.
    """
    try:
        with open_regular(file) as stream:
            state = FileState.of(stream.fileno())
            length = _header_length(file, stream.read(8), state.size)
            return _tensors_of(file, state, state.size, stream.read(length))
    except FileNotFoundError:
        raise InputError(f"{file}: this file of the checkpoint is missing; fetch the checkpoint again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error


def read_remote_header(remote: RemoteFile) -> dict[str, TensorInfo]:
    """Read the tensor index of a safetensors file in object storage by ranges of bytes, and no other bytes.

    Raises:
        InputError: as `read_header`; or it was replaced meanwhile.
    """
    seen, file = remote.seen, remote.folder.folder / remote.name
    begin = bytes(read_range(seen, 0, min(_FIRST_BYTES, seen.size)))
    length = _header_length(file, begin[:8], seen.size)
    rest = read_range(seen, len(begin), 8 + length) if 8 + length > len(begin) else b""
    return _tensors_of(file, remote, seen.size, begin[8 : 8 + length] + rest)


def _header_length(file: Path, begin: bytes, size: int) -> int:
    length = int.from_bytes(begin, "little")
    if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
        raise InputError(f"{file}: truncated or not a safetensors file ({size} bytes); fetch it again")
    return length


def _tensors_of(file: Path, state: FileState | RemoteFile, size: int, content: bytes) -> dict[str, TensorInfo]:
    try:
        header = parse_json(content)
    except ValueError as error:
        raise InputError(
            f"{file}: its header is not JSON ({error}), so it is not a safetensors file; fetch it again"
        ) from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: its header is not a mapping, so it is not a safetensors file; fetch it again")
    header.pop("__metadata__", None)
    data_start = 8 + len(content)
    tensors = {name: _tensor_info(file, state, name, entry, data_start) for name, entry in header.items()}
    _check_layout(file, list(tensors.values()), data_start, size)
    return tensors


def _tensor_info(file: Path, state: FileState | RemoteFile, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype_name, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        well_formed = (
            isinstance(shape, list)
            and len(shape) <= _MAX_DIMENSIONS
            and all(_is_count(number) for number in [*shape, begin, end])
        )
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise InputError(f"{file}: the header's entry for tensor {name!r} is malformed; fetch the file again")
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise InputError(f"{file}: tensor {name!r} has type {dtype_name!r}, which is not supported; convert it to BF16")
    if end - begin != prod(shape) * dtype.itemsize:
        raise InputError(
            f"{file}: the header gives tensor {name!r} {end - begin} bytes, but {dtype_name} {shape} takes "
            f"{prod(shape) * dtype.itemsize}; fetch the file again"
        )
    return TensorInfo(name, tuple(shape), dtype, file, data_start + begin, state)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63


def _check_layout(file: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    """Tensors must follow each other without gap or overlap and end where the file ends, as the format demands."""
    position = data_start
    for info in sorted(tensors, key=lambda info: (info.offset, info.num_bytes)):
        if info.offset != position:
            raise InputError(f"{file}: tensor {info.name!r} overlaps another or leaves a gap; fetch the file again")
        position += info.num_bytes
    if size < position:
        raise InputError(f"{file}: truncated, {size} bytes where its header promises {position}; fetch it again")
    if size > position:
        raise InputError(f"{file}: {size - position} bytes more than its header describes; fetch it again")


def read_tensors(file: Path, names: Sequence[str]) -> list[Tensor]:
    """Read whole tensors of a file, in their shapes.

    Raises:
        InputError: as `read_header`; or one of them is not there.
    """
    header = read_header(file)
    missing = [name for name in names if name not in header]
    if missing:
        raise InputError(f"{file}: holds no tensor {missing[0]!r}; it was damaged or replaced, start again")
    return [read_elements(header[name], 0, header[name].numel).view(header[name].shape) for name in names]


def read_elements(info: TensorInfo, start: int, count: int) -> Tensor:
    """Read elements [start, start + count) of a flattened tensor, and no other bytes.

    Raises:
        InputError: if the file has changed since its header was read.
    """
    values = torch.empty(count, dtype=info.dtype)
    read_elements_into(info, start, values)
    return values


def read_elements_into(info: TensorInfo, start: int, out: Tensor) -> None:
    """Read elements [start, start + len(out)) of a flattened tensor into a contiguous one of the same type.

    Raises:
        InputError: if the file has changed since its header was read.
    """
    if len(out):
        read_into(info.file, info.state, info.offset + start * info.dtype.itemsize, bytes_of(out))


def read_columns(info: TensorInfo, first: int, stop: int) -> Tensor:
    """Columns [first, stop) of a stored matrix, [rows, stop - first], and no other bytes.

    Raises:
        InputError: if the file has changed since its header was read.
    """
    rows, columns = info.shape
    if (first, stop) == (0, columns):
        return read_elements(info, 0, info.numel).view(info.shape)
    values = torch.empty(rows, stop - first, dtype=info.dtype)
    if values.numel():
        size, memory = info.dtype.itemsize, bytes_of(values.view(-1))
        width = (stop - first) * size
        places = ((info.offset + (row * columns + first) * size, row * width) for row in range(rows))
        _read_ranges(info.file, info.state, ((position, memory[at : at + width]) for position, at in places))
    return values


def advise(info: TensorInfo, start: int, count: int, advice: int) -> None:
    """Tell the system what its file cache is to do with elements of a tensor, as in `os.posix_fadvise`."""
    size = info.dtype.itemsize
    with suppress(OSError), open_regular(as_seen(info.file, info.state)[0]) as stream:
        os.posix_fadvise(stream.fileno(), info.offset + start * size, count * size, advice)


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor that is not empty."""
    return values.view(torch.uint8).numpy().data


def have_equal_values(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors hold the same numbers in the same shape; reads as far as the first difference."""
    if one.shape != other.shape:
        return False
    for start in range(0, one.numel, _BLOCK_ELEMENTS):
        count = min(_BLOCK_ELEMENTS, one.numel - start)
        values, others = read_elements(one, start, count), read_elements(other, start, count)
        if one.dtype != other.dtype:
            values, others = values.float(), others.float()
        if not torch.equal(values, others):
            return False
    return True


def read_into(file: Path, state: FileState | RemoteFile, position: int, buffer: memoryview) -> None:
    """Fill `buffer` from a position of a file, which is fetched if it is one of object storage.

    Raises:
        InputError: if the file is gone, ends early, or is not in the state any more that was seen before.
    """
    _read_ranges(file, state, [(position, buffer)])


def _read_ranges(file: Path, state: FileState | RemoteFile, ranges: Iterable[tuple[int, memoryview]]) -> None:
    """Fill each buffer from its position, of a file that is opened once."""
    try:
        file, state = as_seen(file, state)
        with open_regular(file) as stream:
            require_state(file, stream.fileno(), state)
            for position, buffer in ranges:
                done = 0
                while done < len(buffer):
                    got = os.preadv(stream.fileno(), [buffer[done:]], position + done)
                    if got == 0:
                        raise InputError(f"{file}: became shorter while it was in use; leave it alone and start again")
                    done += got
            require_state(file, stream.fileno(), state)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error


def require_state(file: Path, descriptor: int, seen: FileState) -> None:
    """Refuse an open file that is not what was seen.

    Raises:
        InputError: naming the file.
    """
    difference = FileState.of(descriptor).differs_from(seen)
    if difference is not None:
        raise InputError(f"{file}: {difference} while it was in use; leave it alone and start again")
