"""Digests: of plain data, and as numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_digest(content: Any) -> str:
    """SHA-256 over the one JSON text of plain data: keys sorted, no spaces.

    Raises:
        ValueError: a number that is not finite.
        TypeError: something that JSON does not know.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hashed_number(text: str, num_bytes: int) -> int:
    """A number in [0, 256 ** num_bytes) that a text decides, the same on every machine: the head of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:num_bytes], "big")
