"""Constraints of a sweep: bounds that a candidate's domains, or objectives, have to keep."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from mergebench_ray.config.fields import Line

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CONDITION = re.compile(rf"(?P<score>score\s*)?(?P<sign>>=|<=)\s*(?P<bound>{_NUMBER})")


@dataclass(frozen=True)
class Condition:
    """A bound that a candidate has to keep.

    Attributes:
        is_score: whether it is on the score itself, not on its share of the specialist's.
        at_least: whether it is a lower bound.
        bound: the number.
    """

    is_score: bool
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``>= 0.9`` or ``score <= 12``.

        Raises:
            ValueError: saying what is expected.
        """
        found = _CONDITION.fullmatch(text.strip())
        bound = float(found["bound"]) if found else math.inf
        if found is None or not math.isfinite(bound):
            raise ValueError(
                "expected '>= 0.9' (share of the specialist's score) or 'score >= 0.4' (the score itself); <= is an "
                "upper bound, 'and' joins several"
            )
        return cls(found["score"] is not None, found["sign"] == ">=", bound)

    def __str__(self) -> str:
        return f"{'score ' if self.is_score else ''}{'>=' if self.at_least else '<='} {self.bound:g}"


def parse_conditions(text: str) -> list[Condition]:
    """The bounds of a text, with ``and`` between them.

    Raises:
        ValueError: saying what is wrong: not understood, or no number keeps all of them.
    """
    conditions = [Condition.parse(part) for part in re.split(r"\s+and\s+", text.strip())]
    for is_score in (True, False):
        lowest = [one.bound for one in conditions if one.is_score == is_score and one.at_least]
        highest = [one.bound for one in conditions if one.is_score == is_score and not one.at_least]
        if lowest and highest and max(lowest) > min(highest):
            raise ValueError(f"no number is at least {max(lowest):g} and at most {min(highest):g}; widen one of them")
    return conditions


def _check_conditions(text: str) -> str:
    parse_conditions(text)
    return text


def _bare_bound(value: Any) -> Any:
    """A number alone is a lower bound."""
    return f">= {value}" if isinstance(value, int | float) and not isinstance(value, bool) else value


Conditions = Annotated[Line, BeforeValidator(_bare_bound), AfterValidator(_check_conditions)]
"""Bounds as a text: ``>= 0.9``, ``score >= 0.4``, ``score >= 0.4 and score <= 0.6``."""
