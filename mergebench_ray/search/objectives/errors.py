"""How sure a value of an objective is, and a difference between two.

To first order: slopes turn what clusters of items moved domain scores by into what they moved the objective by; where
an objective has a kink, draws of what they moved do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergebench_ray.scores import Influences, combined_error, error_of_sum, in_common
from mergebench_ray.search.objectives.drawn_errors import drawn_error
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import Objective


@dataclass(frozen=True)
class StandardError:
    """A standard error in two parts, which are independent to first order.

    Attributes:
        own: from the items that models were scored on.
        of_references: from the references' scores, which all models that are measured against them share.
    """

    own: float
    of_references: float

    @property
    def total(self) -> float:
        """Both parts."""
        return math.hypot(self.own, self.of_references)


@dataclass(frozen=True)
class Difference:
    """How far one model is above another, on the same items.

    Attributes:
        value: the first's objective minus the second's.
        error: of the value; what both share has been taken out.
    """

    value: float
    error: StandardError

    @property
    def is_within(self) -> bool:
        """Whether two errors reach further than the difference: then which is better is not known."""
        return abs(self.value) <= 2 * self.error.total


def standard_error(objective: Objective, measured: Measured) -> StandardError:
    """Standard error of an objective's value, which must be known.

    Both models answer the same items, so references and candidate mostly err together: the total is rather too large.
    """
    if _has_kinks(objective):
        own = drawn_error(objective, [(1.0, measured)])
    else:
        own = error_of_sum(measured.domains, objective.slopes(measured.scores), measured.influences)
    return StandardError(own, _of_references(objective, objective.reference_slopes(measured.scores)))


def difference(objective: Objective, first: Measured, second: Measured) -> Difference:
    """The first model's value minus the second's, both known, with its paired standard error.

    What a cluster of items moved both by is subtracted before it is squared: items that are hard for both cancel out.
    Of the references' errors only what they do to the difference is left.

    Args:
        objective: what is compared.
        first: a model.
        second: another, scored on the same items.
    """
    one, other = objective.value(first.scores), objective.value(second.scores)
    assert one is not None, "the first model's value is not known"
    assert other is not None, "the second model's value is not known"
    signed = [(1.0, first), (-1.0, second)]
    own = drawn_error(objective, signed) if _has_kinks(objective) else _by_slopes(objective, signed)
    slopes = [objective.reference_slopes(measured.scores) for measured in (first, second)]
    between = {name: slopes[0].get(name, 0.0) - slopes[1].get(name, 0.0) for name in {**slopes[0], **slopes[1]}}
    return Difference(one - other, StandardError(own, _of_references(objective, between)))


def _has_kinks(objective: Objective) -> bool:
    return bool(getattr(objective, "has_kinks", False))


def _by_slopes(objective: Objective, signed: Sequence[tuple[float, Measured]]) -> float:
    """Error of a sum of models' values by their own answers, to first order."""
    by_cluster: list[Influences] = []
    alone: list[float] = []  # errors of domains whose clusters are not known: independent, too large if anything
    for sign, measured in signed:
        for domain, slope in objective.slopes(measured.scores).items():
            if domain in measured.influences:
                by_cluster.append({name: sign * slope * one for name, one in measured.influences[domain].items()})
            else:
                alone.append(slope * measured.domains[domain].standard_error)
    return math.hypot(combined_error(in_common(by_cluster)), *alone)


def _of_references(objective: Objective, slopes: Mapping[str, float]) -> float:
    """What references' errors do to a value with these slopes by them; specialists err independently."""
    return math.hypot(*(slope * objective.references[domain].standard_error for domain, slope in slopes.items()))
