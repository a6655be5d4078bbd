"""Random numbers as a pure function of a key and a position, in int32 arithmetic that cannot overflow.

Each round is a multiply-with-carry step (Marsaglia's generator, here used as a mixing function): for a multiplier
below 2**15 the product and the carry stay below 2**31, so compiled and eager code, vector and scalar alike, compute
the same numbers without relying on how overflow behaves. Shifts and exclusive ors between the steps break their
linearity. Four steps are needed: after three, positions that differ in a high bit alone are still correlated.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

KEYS = 2
"""Keys per stream of random numbers."""

POSITIONS = 1 << 30
"""Positions of one stream; a larger tensor goes on with the keys of its next part."""

_MULTIPLIERS = (31285, 27437, 29531, 28657)
_RANGE = _MULTIPLIERS[-1] << 16


def stream_keys(*parts: object) -> list[int]:
    """Keys of the stream named by `parts`, from SHA-256; each 0 <= key < 2**31."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") & 0x7FFFFFFF for i in range(KEYS)]


def random_below(position: Tensor, keys: list[Tensor]) -> Tensor:
    """Mix positions into numbers spread evenly over 0 .. `threshold_of(1)`.

    Args:
        position: int32 [n], 0 <= position < 2**30.
        keys: `KEYS` scalars of int32.

    Returns:
        int32 [n].
    """
    state = _step(position ^ keys[0], _MULTIPLIERS[0])
    state = _step(_fold(state, 15) ^ keys[1], _MULTIPLIERS[1])
    state = _step(_fold(state, 13), _MULTIPLIERS[2])
    return _step(_fold(state, 15), _MULTIPLIERS[3])


def threshold_of(probability: float) -> int:
    """The number that `random_below` stays below with this probability (to 2**-25 or better)."""
    return round(probability * _RANGE)


def _step(state: Tensor, multiplier: int) -> Tensor:
    return (state & 0xFFFF) * multiplier + torch.bitwise_right_shift(state, 16)


def _fold(state: Tensor, shift: int) -> Tensor:
    # The operator >> does the same but is several times slower in eager code.
    return state ^ torch.bitwise_right_shift(state, shift)
