"""A candidate of a race that is not at its end: what it has answered, and what other runs know of its next items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from mergebench_ray.config import Recipe
from mergebench_ray.evaluation.graded import GradedItem, GradedItems
from mergebench_ray.search.earlier_items import NOTHING, Known
from mergebench_ray.search.running_search import RunningSearch
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.standing import AnsweredFile, Cost, Standing


@dataclass
class Candidate:
    """One that is not at its end.

    Attributes:
        started: when it was proposed, or came again.
        recipe: what it is; None until its first step of this sitting.
        items: place in the split -> what came of it, in the race's order.
        cost: what its goes took so far.
        measurement: what it has scored, once it has stood still.
        until: items at which it is decided on next.
        again: whether it waits from an earlier sitting, and has not come again yet.
        differs: whether answers that were asked again, after an interruption, are not those on disk.
        given_up: why it was asked nothing more, in an earlier sitting that did not keep its row.
        known: what other runs know of it.
        stood: after how many items it stood still in an earlier sitting.
    """

    started: datetime
    recipe: Recipe | None = None
    items: dict[int, GradedItem] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    measurement: Measurement | None = None
    until: int = 0
    again: bool = False
    differs: bool = False
    given_up: str = ""
    known: Known = NOTHING
    stood: Collection[int] = ()

    def knows(self, places: Sequence[int], until: int) -> bool:
        """Whether other runs know what its first items come to, as far as it has not answered them."""
        return all(place in self.known.items for place in places[len(self.items) : until])

    def take_known(self, places: Sequence[int], until: int) -> Mapping[int, GradedItem]:
        """Answer the first items with what other runs know; those that are new."""
        new = {place: self.known.items[place] for place in places[len(self.items) : until]}
        self.items |= new
        sources = Counter(self.cost.reused) + Counter(self.known.sources_of(new))
        self.cost = replace(self.cost, reused=dict(sources))
        return new


class CandidateAnswers:
    """What candidates have answered, on disk and with the scorer.

    Args:
        search: what it works with.
    """

    def __init__(self, search: RunningSearch) -> None:
        self._search = search
        self._places: Sequence[int] = () if search.raced is None else search.raced.places

    def keep(self, number: int, candidate: Candidate, items: GradedItems, cost: Cost | None = None) -> None:
        """Keep further answers, and what all of them took where a candidate stands still."""
        self._file(number, candidate.recipe).add(items, cost, self._search.records.item_digests("validation"))

    def read(self, number: int, recipe: Recipe) -> Candidate:
        """A candidate of an earlier sitting, with the answers that are on disk.

        Raises:
            InputError: they are damaged, or another candidate's.
        """
        standing, stood = self._file(number, recipe).read()
        answered: dict[str, Any] = {"items": dict(standing.items), "cost": standing.cost, "stood": stood}
        return Candidate(datetime.now(UTC), recipe, again=True, **answered)

    def restored(self, number: int, candidate: Candidate, count: int) -> Measurement:
        """Give the scorer a candidate's first answers; what it has scored with them."""
        assert candidate.recipe is not None
        candidate.items = {place: candidate.items[place] for place in self._places[:count]}
        self._search.session.scorer.keep(number, Standing(candidate.recipe.digest, candidate.items, candidate.cost))
        return self._search.session.scorer.measured(number)

    def _file(self, number: int, recipe: Recipe | None) -> AnsweredFile:
        assert recipe is not None
        return AnsweredFile(self._search.run.answered_file(number), recipe.digest)
