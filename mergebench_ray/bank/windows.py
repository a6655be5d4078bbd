"""Cutting the flat order into windows that are read, merged and written one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mergebench_ray.bank.layout import LayoutTensor, Overlap


@dataclass(frozen=True)
class Window:
    """A run of the flat order without a gap.

    Attributes:
        overlaps: what it holds of each tensor, in order.
    """

    overlaps: tuple[Overlap, ...]

    @property
    def start(self) -> int:
        """First entry in the flat order."""
        return self.overlaps[0].start

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.overlaps[-1].stop - self.start

    def place_of(self, overlap: Overlap) -> slice:
        """Where one of the overlaps lies in arrays that hold the window."""
        return slice(overlap.start - self.start, overlap.stop - self.start)


def window_runs(tensors: Sequence[LayoutTensor], entries: int) -> list[list[Window]]:
    """Windows of at most so many entries, in runs: each tensor lies in one run, whose windows follow its order.

    A run is for one thread, so that it reads every tensor from its first element to its last; runs are for any number
    of threads, the longest first.

    Args:
        tensors: in flat order, perhaps with gaps between them.
        entries: most entries of a window.
    """
    runs: list[list[Window]] = []
    together: list[Overlap] = []
    for _, parts in groupby(tensors, lambda tensor: tensor.name):
        overlaps = [Overlap(part, part.start, part.stop) for part in parts]
        stop = overlaps[-1].stop
        if together and (overlaps[0].start != together[-1].stop or stop - together[0].start > entries):
            runs.append([Window(tuple(together))])
            together = []
        if stop - overlaps[0].start > entries:
            runs.append([Window((cut,)) for overlap in overlaps for cut in _cut(overlap, entries)])
        else:
            together += overlaps
    if together:
        runs.append([Window(tuple(together))])
    return sorted(runs, key=lambda run: -sum(window.size for window in run))


def _cut(overlap: Overlap, entries: int) -> Iterator[Overlap]:
    for start in range(overlap.start, overlap.stop, entries):
        yield Overlap(overlap.tensor, start, min(start + entries, overlap.stop))
