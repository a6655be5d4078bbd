"""SHA-256 of files and tensors, streamed, and remembered until a file changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.cache import cache_folder
from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.safetensors_file import read_into
from mergebench_ray.files import whole_file

_BLOCK_BYTES = 8 << 20


def canonical_digest(content: Any) -> str:
    """SHA-256 over the canonical JSON of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return _remembered(file, {"": (0, file.stat().st_size)})[""]


def tensors_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """SHA-256 over names, types, shapes and bytes of stored tensors, the same however they are split over files."""
    files = sorted({info.file for info in tensors.values()})
    with ThreadPoolExecutor(max_workers=4) as pool:
        per_file = pool.map(lambda file: _file_tensor_digests(file, tensors.values()), files)
        digests = {name: digest for part in per_file for name, digest in part.items()}
    return canonical_digest([[n, str(i.dtype), list(i.shape), digests[n]] for n, i in sorted(tensors.items())])


def _file_tensor_digests(file: Path, tensors: Iterable[TensorInfo]) -> dict[str, str]:
    return _remembered(file, {info.name: (info.offset, info.num_bytes) for info in tensors if info.file == file})


def _remembered(file: Path, ranges: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Digests of byte ranges of a file, from the cache if path, size, modification time and inode are the same."""
    state = file.stat()
    key = canonical_digest([str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ino, ranges])
    entry = cache_folder("digests") / f"{key}.json"
    try:
        remembered: dict[str, str] = json.loads(entry.read_text())
    except (OSError, ValueError):
        remembered = {name: _range_digest(file, *position) for name, position in ranges.items()}
        # A cache that cannot be written, as a shared one may be, costs time only.
        with suppress(OSError), whole_file(entry) as temporary:
            temporary.write_text(json.dumps(remembered))
    return remembered


def _range_digest(file: Path, start: int, num_bytes: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, num_bytes)))
    for position in range(0, num_bytes, _BLOCK_BYTES):
        block = buffer[: min(_BLOCK_BYTES, num_bytes - position)]
        read_into(file, start + position, block)
        digest.update(block)
    return digest.hexdigest()
