"""Random numbers as a pure function of keys and a position, in a few int32 operations.

Positions are scrambled once for all specialists: three rounds of a multiplication by an odd constant, which carries low
bits up (torch's int32 products wrap around), and a fold of the high bits down. A specialist's number is the scrambled
position times its own odd key; of a product the high bits are the random ones, and they decide a comparison. So each
further specialist costs one multiplication.

With one round less, positions that differ in a high bit alone are measurably correlated.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

POSITIONS = 1 << 30
"""Positions of one stream; a larger tensor goes on with the keys of its next part."""

_ROUNDS = (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39)


def tensor_keys(*parts: object) -> list[int]:
    """Keys for `scramble` of the tensor named by `parts`, from SHA-256; each 0 <= key < 2**31."""
    digest = _digest(*parts)
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") & 0x7FFFFFFF for i in range(len(_ROUNDS))]


def specialist_key(*parts: object) -> int:
    """Key for `random_numbers` of the specialist, in the tensor, named by `parts`; odd, 0 < key < 2**31."""
    return int.from_bytes(_digest(*parts)[:4], "little") & 0x7FFFFFFF | 1


def scramble(position: Tensor, keys: Tensor) -> Tensor:
    """Mix positions, so that neighbours have nothing in common any more.

    Args:
        position: int32 [n], 0 <= position < 2**30.
        keys: int32 [3], as `tensor_keys` makes them.

    Returns:
        int32 [n], not negative.
    """
    state = position
    for index, factor in enumerate(_ROUNDS):
        product = (state ^ keys[index]) * factor
        # The operator >> does the same but is several times slower in eager code.
        state = product ^ torch.bitwise_right_shift(product, 15)
    return state


def random_numbers(scrambled: Tensor, key: Tensor) -> Tensor:
    """Draw numbers spread evenly over -2**31 .. 2**31.

    Args:
        scrambled: int32 [n] from `scramble`.
        key: int32 scalar, as `specialist_key` makes it; other keys give independent numbers.

    Returns:
        float32 [n]: compared with a threshold faster than integers are, compiled and eager.
    """
    return (scrambled * key).float()


def threshold_of(probability: float) -> float:
    """The number that `random_numbers` stays below with this probability (to 2**-24)."""
    return (probability - 0.5) * 2.0**32


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
