"""Some domains by weights, or one alone."""

from __future__ import annotations

from collections.abc import Mapping

from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.shares import MeanOfShares


class WeightedDomains(MeanOfShares):
    """What of the specialists is recovered in some domains, averaged by weights.

    Args:
        weights: domain -> its weight, above 0; only their ratios count.
        references: the specialists' scores, of these domains at least.

    Attributes:
        name: the domain's where there is one, else weights and domains, such as ``2 math + 1 coding``.
    """

    def __init__(self, weights: Mapping[str, float], references: References) -> None:
        super().__init__({domain: references.specialists[domain] for domain in weights})
        self.name = weights_name(weights)
        self._weights = dict(weights)

    def weights(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """Those given."""
        return self._weights


def weights_name(weights: Mapping[str, float]) -> str:
    """What an objective with these weights is called."""
    if len(weights) == 1:
        return next(iter(weights))
    return " + ".join(f"{weight:g} {domain}" for domain, weight in weights.items())
