"""SHA-256 of files and tensors, streamed, and remembered until a file changes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mergebench_ray.cache import cache_folder
from mergebench_ray.checkpoints.checkpoint import TensorInfo, require_finite
from mergebench_ray.checkpoints.file_state import FileState, as_seen
from mergebench_ray.checkpoints.json_files import parse_json
from mergebench_ray.checkpoints.safetensors_file import read_into, require_state
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular, whole_file

_BLOCK_BYTES = 8 << 20
_FORMAT = 2
"""Of an entry: also says that the tensors were seen to be finite."""
_SHA256 = re.compile("[0-9a-f]{64}")
_TICK_NS = 20_000_000
"""Longer than the steps of the clock that local file systems take their times from."""


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        InputError: if it cannot be read, or changes meanwhile.
    """
    try:
        with open_regular(file) as stream:
            state = FileState.of(stream.fileno())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    return _remembered(file, state, {"": _Range(0, state.size, None)})[""]


def tensors_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """SHA-256 over names, types, shapes and bytes of stored tensors, the same however they are split over files.

    The one pass that sees every byte of a checkpoint, so it also refuses what no engine should load and no model should
    be written with.

    Raises:
        InputError: NaN or infinity in a tensor, naming file and tensor; a file that has changed.
    """
    files = sorted({info.file for info in tensors.values()})
    with ThreadPoolExecutor(max_workers=4) as pool:
        per_file = pool.map(lambda file: _file_tensor_digests(file, tensors.values()), files)
        digests = {name: digest for part in per_file for name, digest in part.items()}
    return canonical_digest([[n, str(i.dtype), list(i.shape), digests[n]] for n, i in sorted(tensors.items())])


@dataclass(frozen=True)
class DigestEntry:
    """What is remembered of a file's tensors, or not yet.

    Attributes:
        names: of the tensors.
        remembered: their digests; None where they are not known.
    """

    names: tuple[str, ...]
    remembered: dict[str, str] | None
    _file: Path

    def remember(self, digests: Mapping[str, str]) -> None:
        """Keep the digests of all of them, which were also seen to be finite, for `tensors_digest`."""
        _remember(self._file, digests)


def digest_entries(tensors: Mapping[str, TensorInfo]) -> list[DigestEntry]:
    """What `tensors_digest` would find remembered, file by file.

    Raises:
        InputError: a file that has changed.
    """
    entries = []
    for file in sorted({info.file for info in tensors.values()}):
        ranges = _ranges_in(file, tensors.values())
        entry = _entry_file(*_seen(file, ranges), ranges)
        entries.append(DigestEntry(tuple(ranges), _entry(entry, set(ranges)), entry))
    return entries


@dataclass(frozen=True)
class _Range:
    """Bytes of a file, and the tensor that they are."""

    start: int
    num_bytes: int
    tensor: TensorInfo | None


def _file_tensor_digests(file: Path, tensors: Iterable[TensorInfo]) -> dict[str, str]:
    ranges = _ranges_in(file, tensors)
    return _remembered(*_seen(file, ranges), ranges)


def _ranges_in(file: Path, tensors: Iterable[TensorInfo]) -> dict[str, _Range]:
    return {info.name: _Range(info.offset, info.num_bytes, info) for info in tensors if info.file == file}


def _seen(file: Path, ranges: Mapping[str, _Range]) -> tuple[Path, FileState]:
    tensor = next(iter(ranges.values())).tensor
    assert tensor is not None
    return as_seen(file, tensor.state)


def _remembered(file: Path, state: FileState, ranges: Mapping[str, _Range]) -> dict[str, str]:
    """Digests of byte ranges of a file, from the cache if path, size, times and inode are the same."""
    entry = _entry_file(file, state, ranges)
    remembered = _entry(entry, set(ranges))
    if remembered is None:
        remembered = {name: _range_digest(file, state, one) for name, one in ranges.items()}
        _remember(entry, remembered)
    return remembered


def _entry_file(file: Path, state: FileState, ranges: Mapping[str, _Range]) -> Path:
    """Where the cache holds, or would hold, the digests of ranges of a file that has not changed since."""
    _wait_for_another_tick(state)
    with open_regular(file) as stream:
        require_state(file, stream.fileno(), state)
    places = {name: [one.start, one.num_bytes, str(one.tensor and one.tensor.dtype)] for name, one in ranges.items()}
    key = canonical_digest(
        [_FORMAT, str(file.resolve()), state.size, state.inode, state.modified, state.changed, places]
    )
    return cache_folder("digests") / f"{key}.json"


def _remember(entry: Path, digests: Mapping[str, str]) -> None:
    # A cache that cannot be written, as a shared one may be, costs time only.
    with suppress(OSError, InputError), whole_file(entry) as temporary:
        temporary.write_text(json.dumps(digests))


def _entry(entry: Path, names: set[str]) -> dict[str, str] | None:
    """What the cache holds, unless it is damaged."""
    try:
        with open_regular(entry) as stream:
            found = parse_json(stream.read())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or set(found) != names:
        return None
    return found if all(isinstance(text, str) and _SHA256.fullmatch(text) for text in found.values()) else None


def _wait_for_another_tick(state: FileState) -> None:
    """Let the clock of file times go on, or a change that follows at once would leave the same time."""
    age = time.time_ns() - state.changed
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)


def _range_digest(file: Path, state: FileState, one: _Range) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(min(_BLOCK_BYTES, one.num_bytes))
    for position in range(0, one.num_bytes, _BLOCK_BYTES):
        block = memoryview(buffer)[: min(_BLOCK_BYTES, one.num_bytes - position)]
        read_into(file, state, one.start + position, block)
        if one.tensor is not None:
            require_finite(file, one.tensor.name, torch.frombuffer(block, dtype=one.tensor.dtype))
        digest.update(block)
    return digest.hexdigest()
