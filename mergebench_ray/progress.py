"""How long work tells whoever waits for it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Is called with the fraction done, 0 to 1, and one line that says what is happening."""


def silent(_fraction: float, _what: str) -> None:
    """Where nobody waits."""
