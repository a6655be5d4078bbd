"""Headers of GGUF files, checked against the file's size before any library believes a count in them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 1 << 16
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself.

    Attributes:
        metadata: scalars and texts by key; of arrays only their length.
        num_tensors: how many tensors there are.
        elements: their entries together.
    """

    metadata: dict[str, Any]
    num_tensors: int
    elements: int


def read_gguf_header(file: Path) -> GGUFHeader:
    """Read a header and check that all it promises lies within the file.

    Raises:
        InputError: the file is not GGUF, is cut, or its header contradicts itself.
    """
    try:
        with open_regular(file) as stream:
            return _Reader(file, stream).header()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error


class _Reader:
    """A position in a header that never leaves the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._size = stream.seek(0, 2)
        stream.seek(0)

    def header(self) -> GGUFHeader:
        if self._size < len(_MAGIC) or self._take(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{self._file}: not a GGUF file; check the path or fetch it again")
        version = self._number("I")
        if version not in _VERSIONS:
            raise self._broken(f"GGUF version {version}, where 2 and 3 (little-endian) can be read")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._name("key")
            if key in metadata:
                raise self._broken(f"the key {key!r} comes twice")
            metadata[key] = self._value(self._number("I"))
        places: dict[str, tuple[int, int]] = {}
        elements = 0
        for _ in range(num_tensors):
            name = self._name("tensor")
            if name in places:
                raise self._broken(f"the tensor {name!r} comes twice")
            count, places[name] = self._tensor(name)
            elements += count
        self._check_places(places, metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        self._check_layers(metadata, num_tensors)
        return GGUFHeader(metadata, num_tensors, elements)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._take(self._number("Q"))
        if kind != _ARRAY:
            return self._number(self._scalar(kind))
        kind, length = self._number("I"), self._number("Q")
        if kind != _STRING:
            self._skip(length * struct.calcsize(self._scalar(kind)))
        else:
            for _ in range(length):
                self._skip(self._number("Q"))
        return length

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._broken(f"a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _tensor(self, name: str) -> tuple[int, tuple[int, int]]:
        """Entries of a tensor, and its place (offset, bytes) in the data."""
        from gguf import GGML_QUANT_SIZES

        num_dimensions = self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._broken(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = [self._number("Q") for _ in range(num_dimensions)]
        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        kind, offset = self._number("I"), self._number("Q")
        if kind not in sizes:
            raise self._broken(f"tensor {name!r} has the unknown type {kind}")
        block, block_bytes = sizes[kind]
        if shape and shape[0] % block:
            raise self._broken(f"tensor {name!r} has rows of {shape[0]} entries in blocks of {block}")
        return prod(shape), (offset, prod(shape) // block * block_bytes)

    def _check_places(self, places: dict[str, tuple[int, int]], alignment: Any) -> None:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment!r}, where a power of two is needed")
        start = -(-self._stream.tell() // alignment) * alignment
        end = 0
        for name, (offset, num_bytes) in sorted(places.items(), key=lambda item: item[1]):
            if offset % alignment or offset < end:
                raise self._broken(f"tensor {name!r} overlaps another or is not aligned")
            end = offset + num_bytes
            if start + end > self._size:
                raise self._broken(f"truncated, {self._size} bytes where tensor {name!r} ends at {start + end}")

    def _check_layers(self, metadata: dict[str, Any], num_tensors: int) -> None:
        for key, value in metadata.items():
            if key.endswith(".block_count") and not (isinstance(value, int) and 0 < value <= num_tensors):
                raise self._broken(f"{key} is {value!r} and there are {num_tensors} tensors")

    def _name(self, what: str) -> str:
        length = self._number("Q")
        if length > _MAX_NAME_BYTES:
            raise self._broken(f"a {what} has a name of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._broken(f"a {what} has a name that is not UTF-8") from None

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self._take(struct.calcsize(form)))
        return value

    def _skip(self, num_bytes: int) -> None:
        if num_bytes > self._size - self._stream.tell():
            raise self._broken(f"truncated, {self._size} bytes")
        self._stream.seek(num_bytes, 1)

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self._size - self._stream.tell():
            raise self._broken(f"truncated, {self._size} bytes")
        return self._stream.read(num_bytes)

    def _broken(self, problem: str) -> InputError:
        return InputError(f"{self._file}: {problem}; fetch the GGUF file again")
