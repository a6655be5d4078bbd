"""In which form compiled code takes flat arrays: which entries, how many at a time, from where on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.pairs import WORDS, as_words, reads_pairs

ALIGNMENT = 16
"""Bytes that a GPU reads at once at best. As many entries lie on such an address again, whatever their dtype."""


class Form(Enum):
    """What a compiled kernel runs over; it leaves what does not fit to the eager one."""

    ENTRIES = "entries"
    """Any run of at least two entries, from anywhere: on a CPU."""
    WORDS = "words"
    """Pairs of bf16 entries in whole registers (see `pairs`): on an x86 CPU."""
    ALIGNED = "aligned"
    """Multiples of 16 entries from addresses that are multiples of 16 bytes: on a GPU.

    For lengths that are free Inductor has to assume 2-byte loads, which halve the speed. And it copies an argument
    that does not begin on 16 bytes, `out` among them, so that nothing would be written into the one that was meant.
    """

    @classmethod
    def of(cls, function: BlockFunction, out_dtype: torch.dtype, device: torch.device) -> Form:
        """The fastest form for a function whose arrays lie on this device."""
        if device.type != "cpu":
            return cls.ALIGNED
        return cls.WORDS if reads_pairs(function, out_dtype, device) else cls.ENTRIES

    @property
    def multiple(self) -> int:
        """What the length of compiled code's arrays is a multiple of, at least two times as many."""
        return {Form.ENTRIES: 1, Form.WORDS: WORDS, Form.ALIGNED: ALIGNMENT}[self]

    @property
    def entries(self) -> int:
        """How many entries an element of compiled code's arrays holds."""
        return 2 if self is Form.WORDS else 1

    def arrays(self, entries: Sequence[Tensor]) -> list[Tensor] | None:
        """The same memory as compiled code takes it; None where it cannot."""
        if self is Form.WORDS:
            return as_words(entries)
        if self is Form.ALIGNED and any(tensor.data_ptr() % ALIGNMENT for tensor in entries):
            return None
        return list(entries)

    def whole(self, start: int, stop: int) -> range:
        """What compiled code takes of entries start .. stop, in elements of its arrays; perhaps nothing."""
        align = ALIGNMENT if self is Form.ALIGNED else 1
        first = -(-start // self.entries // align) * align
        count = (stop // self.entries - first) // self.multiple
        return range(first, first + count * self.multiple if count > 1 else first)
