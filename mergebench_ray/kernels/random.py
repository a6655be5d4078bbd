"""Random numbers as a pure function of keys and a position, in int32 arithmetic that cannot overflow.

Each step is a multiply-with-carry (Marsaglia's generator, here used as a mixing function): for a multiplier below
2**15 the product and the carry stay below 2**31, so compiled and eager code, vector and scalar alike, compute the same
numbers without relying on how overflow behaves. Shifts and exclusive ors between the steps break their linearity.

Two steps scramble the position, once for all specialists; three more make each specialist's own number. With fewer,
positions that differ in a high bit alone, or two specialists, are measurably correlated.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

KEYS = 2
"""Keys of `scramble`, and of `random_below`."""

POSITIONS = 1 << 30
"""Positions of one stream; a larger tensor goes on with the keys of its next part."""

_SCRAMBLE = (31285, 27437)
_DRAW = (27437, 29531, 28657)
_RANGE = _DRAW[-1] << 16


def stream_keys(*parts: object) -> list[int]:
    """Keys of the stream named by `parts`, from SHA-256; each 0 <= key < 2**31."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") & 0x7FFFFFFF for i in range(KEYS)]


def scramble(position: Tensor, keys: list[Tensor]) -> Tensor:
    """Mix positions, so that neighbours have nothing in common any more.

    Args:
        position: int32 [n], 0 <= position < 2**30.
        keys: `KEYS` scalars of int32.

    Returns:
        int32 [n], not negative.
    """
    state = _step(position ^ keys[0], _SCRAMBLE[0])
    state = _step(_fold(state, 15) ^ keys[1], _SCRAMBLE[1])
    return _fold(state, 13)


def random_below(scrambled: Tensor, keys: list[Tensor]) -> Tensor:
    """Draw numbers spread evenly over 0 .. `threshold_of(1)`.

    Args:
        scrambled: int32 [n] from `scramble`.
        keys: `KEYS` scalars of int32; other keys give independent numbers.

    Returns:
        int32 [n].
    """
    state = _step(scrambled ^ keys[0], _DRAW[0])
    state = _step(_fold(state, 13) ^ keys[1], _DRAW[1])
    return _step(_fold(state, 15), _DRAW[2])


def at_least(numbers: Tensor, threshold: Tensor) -> Tensor:
    """1.0 where a number reaches the threshold, else 0.0; float32 [n].

    Done by the sign of the difference: a comparison whose outcome is random costs several times as much.
    """
    return (1 + torch.bitwise_right_shift(numbers - threshold, 31)).float()


def threshold_of(probability: float) -> int:
    """The number that `random_below` stays below with this probability (to 2**-25 or better)."""
    return round(probability * _RANGE)


def _step(state: Tensor, multiplier: int) -> Tensor:
    return (state & 0xFFFF) * multiplier + torch.bitwise_right_shift(state, 16)


def _fold(state: Tensor, shift: int) -> Tensor:
    # The operator >> does the same but is several times slower in eager code.
    return state ^ torch.bitwise_right_shift(state, shift)
