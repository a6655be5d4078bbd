"""What is counted tensor by tensor, whoever holds which part of a tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mergebench_ray.kernels import Magnitudes, Pass, Scalars, Segment

_BLOCK = 1 << 22
"""Entries whose values are held at a time."""

Counted = list[tuple[str, list[Magnitudes]]]
"""Name of a tensor, and the magnitudes of each task vector in a part of it."""

Totals = list[tuple[str, list[int]]]
"""Name of a tensor, and sums over a part of it, one for each of several scalars."""


def count_each(vectors: Iterable[Tensor]) -> list[Magnitudes]:
    """Count those of several bf16 [n]."""
    return [Magnitudes.of(vector) for vector in vectors]


def count_values(
    run: Pass, base: Tensor, vectors: Sequence[Tensor], scalars: Sequence[Scalars], threads: int
) -> list[Magnitudes]:
    """Count those of an element-wise function, rounded to bf16, for each of several scalars.

    Args:
        run: the function.
        base: bf16 [n].
        vectors: K times bf16 [n].
        scalars: what the function gets beside them.
        threads: to use.
    """
    counted = []
    out = torch.empty(min(len(base), _BLOCK), dtype=torch.bfloat16, device=base.device)
    for one in scalars:
        parts = []
        for start in range(0, len(base), _BLOCK):
            arrays = [array[start : start + _BLOCK] for array in (base, *vectors)]
            values = out[: len(arrays[0])]
            run.run(arrays[0], arrays[1:], [Segment(0, len(values), 0, one)], values, threads)
            parts.append(Magnitudes.of(values))
        counted.append(Magnitudes.together(parts))
    return counted


def magnitudes_by_tensor(found: Iterable[Counted]) -> dict[str, Sequence[Magnitudes]]:
    """Those of whole tensors from those of all parts, in whatever order they come."""
    parts: dict[str, list[list[Magnitudes]]] = defaultdict(list)
    for counted in found:
        for name, some in counted:
            parts[name].append(some)
    return {name: [Magnitudes.together(one) for one in zip(*some, strict=True)] for name, some in parts.items()}


def totals_by_tensor(found: Iterable[Totals]) -> dict[str, Sequence[int]]:
    """Sums over whole tensors from those over all parts."""
    totals: dict[str, list[int]] = {}
    for counted in found:
        for name, some in counted:
            before = totals.get(name, [0] * len(some))
            totals[name] = [one + more for one, more in zip(before, some, strict=True)]
    return dict(totals)
