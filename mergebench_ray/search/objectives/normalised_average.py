"""The normalised average: what of the specialists is kept, every domain alike."""

from __future__ import annotations

from collections.abc import Mapping

from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.registry import register
from mergebench_ray.search.objectives.shares import MeanOfShares


@register
class NormalisedAverage(MeanOfShares):
    """What of each domain's specialist is recovered, averaged over the domains (1.0: everything)."""

    name = "normalised_average"

    def __init__(self, references: References) -> None:
        super().__init__(references.specialists)

    def weights(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """The same for all."""
        return dict.fromkeys(shares, 1.0)
