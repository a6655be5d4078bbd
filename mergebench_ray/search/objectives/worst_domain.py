"""The worst domain: no specialist is given up for the others."""

from __future__ import annotations

from collections.abc import Mapping

from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.registry import register
from mergebench_ray.search.objectives.shares import MeanOfShares


@register
class WorstDomain(MeanOfShares):
    """What of its specialist is recovered in the domain where that is least.

    Where several domains are about as bad, the least of several uncertain numbers is too low on average.
    """

    name = "worst_domain"
    has_kinks = True

    def __init__(self, references: References) -> None:
        super().__init__(references.specialists)

    def weights(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """All on the worst, the first of equals."""
        return {min(shares, key=lambda domain: shares[domain]): 1.0}
