"""Digests of plain data."""

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
