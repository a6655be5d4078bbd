"""Which items are asked in which order, when they are looked at, and which engine has which of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """Which items an engine is asked, where several engines share a candidate's.

    Attributes:
        index: of the share, from 0.
        count: number of shares.
    """

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Order:
    """Items in the order in which they are asked, and when to look at what has been answered.

    Attributes:
        places: of the items in the split, as in the rows of `Scores.items` of all its domains; each at most once.
        in_flight: sequences that an engine computes at a time. The smaller, the less is thrown away at a stop, and the
            slower are items that are not. Answers in bf16 depend a little on what is computed beside them, so it is one
            number for all candidates that are compared. None leaves it to the engine.
        alone: how many of the first items are complete before another begins: after those most candidates are stopped,
            and nothing is thrown away. Like `in_flight` it is one number for all candidates.
        looks: numbers of items, growing: the first 20 of the order are looked at as soon as they are complete, say,
            then the first 40. All of them are, whatever stands here.
        start: how many of the first items are known already, so that they are not asked.
        end: how many of the first items are asked; None for all.
    """

    places: tuple[int, ...]
    in_flight: int | None
    alone: int = 0
    looks: tuple[int, ...] = ()
    start: int = 0
    end: int | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of the first items are complete at each look that is still to come."""
        total = len(self.places) if self.end is None else self.end
        return (*(count for count in self.looks if self.start < count < total), total)

    def dealt(self, share: Share) -> tuple[int, ...]:
        """Places of the items of a share, in this order, those that are known included.

        Items are dealt out in turn, so that the shares of each look are equal, give or take one item.
        """
        return self.places[share.index :: share.count]

    def alone_of(self, share: Share) -> frozenset[int]:
        """Places of a share's items that are complete before another begins; none where they were answered before."""
        return frozenset(self.places[share.index : self.alone : share.count] if self.start == 0 else ())

    @property
    def looks_alone(self) -> int:
        """How many of the looks that are to come are complete before another item begins, on every share."""
        return 0 if self.start else sum(count <= self.alone for count in self.counts)

    def by_look(self, share: Share) -> list[list[int]]:
        """Places of a share's items that each look adds, in this order."""
        bounds = pairwise((self.start, *self.counts))
        firsts = [(begin + (share.index - begin) % share.count, end) for begin, end in bounds]
        return [[*self.places[first : end : share.count]] for first, end in firsts]
