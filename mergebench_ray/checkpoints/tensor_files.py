"""Sharded safetensors files written as a stream: headers first, then each tensor at its place, in any order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Progress
from mergebench_ray.checkpoints.folder import INDEX_NAME

Shape = tuple[int, ...]
_ITEM_BYTES = 2


@dataclass(frozen=True)
class _Place:
    stream: BinaryIO
    position: int
    shape: Shape


def write_tensors(
    folder: Path,
    shapes: Mapping[str, Shape],
    tensors: Iterable[tuple[str, Tensor]],
    max_file_bytes: int,
    progress: Progress | None = None,
) -> None:
    """Write bf16 safetensors files and their index, holding one tensor at a time.

    Args:
        folder: existing folder for the files.
        shapes: name and shape of every tensor that will come.
        tensors: each of them once, in any order, of any shape with the same number of elements, on any device.
        max_file_bytes: most bytes of tensors a file; a larger tensor has a file of its own.
        progress: told about the fraction written.

    Raises:
        ValueError: if a tensor is unknown, comes twice, is missing at the end, or has another number of elements.
        OSError: if the disk is too full, before the first tensor is asked for.
    """
    groups = _split(shapes, max_file_bytes)
    total = sum(map(_num_bytes, shapes.values()))
    with ExitStack() as files:
        places: dict[str, _Place] = {}
        file_names: dict[str, str] = {}
        for number, names in enumerate(groups, start=1):
            file_name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            stream = files.enter_context((folder / file_name).open("xb", buffering=0))
            places |= _start_file(stream, {name: shapes[name] for name in names})
            file_names |= dict.fromkeys(names, file_name)
        written = 0
        for name, tensor in tensors:
            if name not in places:
                raise ValueError(f"tensor {name!r} was not announced, or comes twice")
            written += _write_tensor(name, tensor, places.pop(name))
            if progress is not None:
                progress(written / total, f"written {written / 2**30:.2f} of {total / 2**30:.2f} GiB")
        if places:
            raise ValueError(f"tensor {min(places)!r} and {len(places) - 1} more never came")
    index = {"metadata": {"total_size": total}, "weight_map": file_names}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _num_bytes(shape: Shape) -> int:
    return prod(shape) * _ITEM_BYTES


def _split(shapes: Mapping[str, Shape], max_file_bytes: int) -> list[list[str]]:
    """Names by file, in sorted order."""
    groups: list[list[str]] = []
    room = 0
    for name in sorted(shapes):
        size = _num_bytes(shapes[name])
        if not groups or size > room:
            groups.append([])
            room = max_file_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _start_file(stream: BinaryIO, shapes: Mapping[str, Shape]) -> dict[str, _Place]:
    """Write the header and reserve the file's space, so that a full disk shows at once."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    os.posix_fallocate(stream.fileno(), 0, start + end)
    _write_at(stream, 0, memoryview(len(text).to_bytes(8, "little") + text))
    places = {}
    for name, shape in shapes.items():
        places[name] = _Place(stream, start, shape)
        start += _num_bytes(shape)
    return places


def _write_tensor(name: str, tensor: Tensor, place: _Place) -> int:
    if tensor.numel() != prod(place.shape):
        raise ValueError(f"tensor {name!r} has {tensor.numel()} elements, its shape is {list(place.shape)}")
    values = tensor.detach().to("cpu", torch.bfloat16).contiguous().flatten()
    _write_at(place.stream, place.position, memoryview(values.view(torch.uint8).numpy()))
    return _num_bytes(place.shape)


def _write_at(stream: BinaryIO, position: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(stream.fileno(), buffer[done:], position + done)
