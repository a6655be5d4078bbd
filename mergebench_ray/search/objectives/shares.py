"""Objectives made of what a model recovers of references' scores, domain by domain."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from mergebench_ray.errors import InputError
from mergebench_ray.scores import DomainScore, exact_sum, recovered, slopes_of_recovered
from mergebench_ray.search.objectives.objective import Direction


class MeanOfShares(ABC):
    """A weighted mean of what of each reference's score is recovered, so always better when higher.

    Args:
        references: domain -> the score that counts as 1 there.

    Attributes:
        name: see `Objective`, as all others.
    """

    name: str
    direction: Direction = "maximize"

    def __init__(self, references: Mapping[str, DomainScore]) -> None:
        self.references: Mapping[str, DomainScore] = dict(references)

    @abstractmethod
    def weights(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """Weight of each domain that counts, not all 0, for a model that recovers these shares."""

    def value(self, scores: Mapping[str, float]) -> float | None:
        """The mean; None where a score is missing or cannot be normalised, or nothing counts."""
        shares = self._shares(scores)
        if not shares:
            return None
        weights = self.weights(shares)
        return exact_sum(weight * shares[domain] for domain, weight in weights.items()) / exact_sum(weights.values())

    def slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative by each score that counts."""
        return {domain: by_score for domain, (by_score, _) in self._all_slopes(scores).items()}

    def reference_slopes(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative by each reference that counts."""
        return {domain: by_reference for domain, (_, by_reference) in self._all_slopes(scores).items()}

    def _shares(self, scores: Mapping[str, float]) -> dict[str, float] | None:
        shares = {}
        for domain, reference in self.references.items():
            score = scores.get(domain, math.nan)
            share = recovered(score, reference.score, reference.higher_is_better)
            if share is None:
                return None
            shares[domain] = share
        return shares

    def _all_slopes(self, scores: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """By score and by reference, of each domain that counts."""
        shares = self._shares(scores)
        assert shares is not None, "scores without a value have no slopes"
        weights = self.weights(shares)
        total = exact_sum(weights.values())
        slopes = {}
        for domain, weight in weights.items():
            reference = self.references[domain]
            by_score, by_reference = slopes_of_recovered(
                shares[domain], scores[domain], reference.score, reference.higher_is_better
            )
            slopes[domain] = by_score * weight / total, by_reference * weight / total
        return slopes


def check_references(references: Mapping[str, DomainScore]) -> None:
    """Refuse specialists that nothing can be measured against.

    Args:
        references: the specialists' scores by domain.

    Raises:
        InputError: naming the domain and all scores.
    """
    for domain, reference in references.items():
        if not 0 < reference.score < math.inf:
            raise InputError(
                _not_normalised(f"its specialist scores {reference.score:g}", domain, references, "specialist")
            )


def why_not_normalised(scores: Mapping[str, DomainScore], references: Mapping[str, DomainScore]) -> str | None:
    """In one line, why what a model recovers of its references is not known; None where it is.

    Args:
        scores: the model's, by domain.
        references: the specialists' scores by domain.
    """
    for domain, result in scores.items():
        reference = references.get(domain)
        if reference is None:
            return f"domain {domain!r} has no specialist to normalise by; add one of that name, or leave the domain out"
        if not 0 < reference.score < math.inf:
            return _useless(domain, references)
        if recovered(result.score, reference.score, result.higher_is_better) is None:
            return _not_normalised(f"the model scores {result.score:g}", domain, scores, "model")
    return None


def _useless(domain: str, references: Mapping[str, DomainScore]) -> str:
    return _not_normalised(f"its specialist scores {references[domain].score:g}", domain, references, "specialist")


def _not_normalised(what: str, domain: str, scores: Mapping[str, DomainScore], whose: str) -> str:
    found = ", ".join(f"{name} {score.score:.4g}" for name, score in scores.items())
    turned = "" if scores[domain].higher_is_better else "set one_minus: true for a share that may be 0, "
    return (
        f"domain {domain!r}: {what}, so nothing can be normalised there ({whose} scores: {found}); {turned}score more "
        "items, count another metric, or leave the domain out"
    )
