"""bf16 entries read and written two at a time, as 32-bit words, on x86.

Without AVX-512, x86 takes six instructions to widen sixteen bf16 entries from their own places, and as many for every
further array; a linear method spends more time on that than on its arithmetic. Of a word that holds two entries, one
shift gives the first as float32 and one mask the second. A function then runs over all first entries and over all
second ones, which also halves the values that it holds in registers at a time. With AVX-512 that is what counts: a
register of bf16 entries becomes two of float32, and Inductor converts integers two registers at a time by way of the
stack, by which random masks take three times as long.

Words come in whole registers, so that the loop has no rest to look out for; other entries are left to the eager kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.machine import is_x86

WORD = torch.float32
"""Dtype that words are passed as: Inductor loads float32 in one instruction, int32 by way of the stack."""

WORDS = 16
"""Words of the widest register: compiled code takes multiples of this many, at least two times as many."""

_HIGH = -0x10000


def as_words(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """The same memory as words: [n] of bf16 as [n // 2] of `WORD`; None where one does not begin with a whole word."""
    if any(tensor.storage_offset() % 2 for tensor in tensors):
        return None
    return [tensor[: len(tensor) // 2 * 2].view(WORD) for tensor in tensors]


def reads_pairs(function: BlockFunction, out_dtype: torch.dtype, device: torch.device) -> bool:
    """Whether compiled code for this function should read pairs: bf16 alone, on an x86 CPU."""
    only_bf16 = out_dtype == torch.bfloat16 and function.companion in (None, torch.bfloat16)
    return only_bf16 and device.type == "cpu" and is_x86()


def first_entries(words: Tensor) -> Tensor:
    """The entries in the low halves of words (little-endian: those that come first), as float32."""
    return (words.view(torch.int32) << 16).view(torch.float32)


def second_entries(words: Tensor) -> Tensor:
    """The entries in the high halves of words, as float32."""
    return (words.view(torch.int32) & _HIGH).view(torch.float32)


def rounded_words(first: Tensor, second: Tensor) -> Tensor:
    """Words of two float32 [n], each rounded to bf16: to nearest, ties to even. NaN must be as x86 makes it."""
    return ((_rounded(second) & _HIGH) | ((_rounded(first) >> 16) & 0xFFFF)).view(WORD)


def _rounded(values: Tensor) -> Tensor:
    """Bits of float32 whose high halves are the nearest bf16: carries from the low half, ties towards an even half."""
    bits = values.view(torch.int32)
    return bits + (((bits >> 16) & 1) + 0x7FFF)
