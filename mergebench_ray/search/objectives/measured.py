"""What one model scored, as far as objectives and their errors need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergebench_ray.scores import DomainScore, Influences, Scores


@dataclass(frozen=True)
class Measured:
    """What one model scored.

    Attributes:
        domains: score per domain.
        influences: of each domain's clusters of items on its score; domains without count as independent.
    """

    domains: Mapping[str, DomainScore]
    influences: Mapping[str, Influences] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Scores) -> Measured:
        """From everything that was measured."""
        return cls(scores.domains, scores.influences)

    @property
    def scores(self) -> dict[str, float]:
        """The scores alone."""
        return {domain: result.score for domain, result in self.domains.items()}
