"""How many answers a search asks for: of references, candidates, the final choice and test."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mergebench_ray.config.fields import Split
from mergebench_ray.placement.records import Record

FINALISTS = 5
"""Candidates that are compared on the items held back."""

_ON_VALIDATION = 2  # base, plain average; beside them the specialists, each on its own domain
_BESIDE = 4  # the same, and task arithmetic with one simple coefficient


class Answers(Record):
    """Answers that a part of a search takes, those included that other runs were given and nobody is asked again.

    Attributes:
        what: the part.
        least: how many at least; of candidates, as far as races have been measured.
        most: how many at most.
    """

    what: str
    least: int
    most: int


def models_at_the_end(candidates: int, methods: int) -> dict[Split, int]:
    """How many whole models are scored after the search on each split, at most.

    Args:
        candidates: of the search.
        methods: that it searched: the best of each is scored on test.
    """
    return {"final": _BESIDE + min(FINALISTS, candidates), "test": _BESIDE + min(methods, candidates)}


def items_at_the_end(items: Mapping[Split, int], candidates: int, methods: int, known: Collection[Split] = ()) -> int:
    """How many answers are asked after the search, at most.

    Args:
        items: split -> items that a whole model answers.
        candidates: of the search.
        methods: that it searched.
        known: splits on which what is compared with was scored already.
    """
    models = models_at_the_end(candidates, methods)
    return sum((count - _BESIDE * (split in known)) * items.get(split, 0) for split, count in models.items())


def least_items(items: Mapping[Split, int], of_specialists: int) -> int:
    """How many answers the smallest search takes: of references, one candidate, and what is scored after it.

    Args:
        items: split -> items that a whole model answers.
        of_specialists: items of all specialists on validation, each on its own domain.
    """
    return of_specialists + (_ON_VALIDATION + 1) * items["validation"] + items_at_the_end(items, 1, 1)


def expected_answers(
    items: Mapping[Split, int],
    of_specialists: int,
    candidates: int | None,
    methods: int,
    share: tuple[float, float],
    taken: int = 0,
) -> list[Answers]:
    """What each part of a search takes.

    Args:
        items: split -> items that a whole model answers.
        of_specialists: items of all specialists on validation, each on its own domain.
        candidates: how many are tried; None where a budget says it.
        methods: that are searched.
        share: of the items of all candidates, what is asked, from and to.
        taken: candidates of other runs that it begins with.
    """
    on_validation = items["validation"]
    found = [_exactly("references on validation", of_specialists + _ON_VALIDATION * on_validation)]
    if candidates is not None:
        in_full = 0 if taken else on_validation  # one at least is not stopped
        least, most = (max(in_full, round(one * candidates * on_validation)) for one in share)
        found.append(Answers(what="candidates", least=least, most=most))
    for split, models in models_at_the_end((candidates or FINALISTS) + taken, methods).items():
        if items.get(split):
            what = "final choice, on items held back" if split == "final" else "test"
            found.append(Answers(what=what, least=_BESIDE * items[split], most=models * items[split]))
    return found


def _exactly(what: str, count: int) -> Answers:
    return Answers(what=what, least=count, most=count)
