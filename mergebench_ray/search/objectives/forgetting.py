"""What a merge does not lose: the base's scores where no specialist was trained."""

from __future__ import annotations

from collections.abc import Mapping

from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.registry import register
from mergebench_ray.search.objectives.shares import MeanOfShares


@register
class Forgetting(MeanOfShares):
    """What is kept of the base's scores, averaged over the suite's `forgetting` section (1.0: nothing lost).

    Where it is an objective or a constraint, candidates are scored on that section, too.
    """

    name = "forgetting"

    def __init__(self, references: References) -> None:
        super().__init__({name: one for name, one in references.base.items() if name not in references.specialists})

    def weights(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """The same for all."""
        return dict.fromkeys(shares, 1.0)
