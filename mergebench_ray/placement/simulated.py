"""A sweep as events: how much of their time engines compute, for numbers of them that nobody has at hand."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from mergebench_ray.placement.records import Record

PROPOSE_SECONDS = 0.09
"""Of the search itself, a candidate (`benchmarks/search_overhead.py`)."""


class Steps(Record):
    """What a candidate takes, in seconds.

    Attributes:
        propose: until the search has proposed it; one candidate at a time.
        swap: merging it and loading it into its engine; one at a time, as the bank has one output.
        answer: computing its answers.
    """

    propose: float
    swap: float
    answer: float


class Simulated(Record):
    """What came of it.

    Attributes:
        seconds: until the last candidate was scored.
        efficiency: share of the time of all engines in which they computed answers.
    """

    seconds: float
    efficiency: float


def simulate(steps: Sequence[Steps], engines: int) -> Simulated:
    """Score candidates on engines that take one each, in their order.

    An engine that is free waits for a proposal, then for the bank; both serve in the order of asking.

    Args:
        steps: of each candidate.
        engines: that score at once.
    """
    free = [0.0] * engines
    proposer = bank = end = 0.0
    for one in steps:
        proposer = max(heapq.heappop(free), proposer) + one.propose
        bank = max(proposer, bank) + one.swap
        heapq.heappush(free, bank + one.answer)
        end = max(end, bank + one.answer)
    return Simulated(seconds=end, efficiency=sum(one.answer for one in steps) / (engines * end))
