"""One candidate scored in order by evaluators that hold its weights: looked at, and stopped, from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import ray

from mergebench_ray.config.fields import Split
from mergebench_ray.evaluation.evaluator import Evaluator
from mergebench_ray.evaluation.graded import GradedItem, GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.order import Order, Share
from mergebench_ray.ray_actors import Actor
from mergebench_ray.scores import ItemRow, Scores


@dataclass(frozen=True)
class Look:
    """What one look adds.

    Attributes:
        count: how many of the order's first items are complete with it.
        items: place in the split -> what came of it, of the items since the look before, in the order.
    """

    count: int
    items: GradedItems

    @property
    def rows(self) -> list[ItemRow]:
        """What is kept of those items, in the order."""
        return [item.row for item in self.items.values()]


@dataclass(frozen=True)
class Answered:
    """What is known of a candidate: the first items of the order, as its looks gave them.

    Attributes:
        graded: those items, and what they took.
        count: how many they are.
    """

    graded: GradedShare
    count: int


class OrderedScoring:
    """Scores the weights that all of several evaluators hold, each on its share of the items in a given order.

    It begins at once. One thread fetches looks; any other may say `stop`. Evaluators go on while a look is judged,
    but for half a second after those that are `alone`, and end within a step of their engine when they are stopped.

    What was stopped goes on later from the last look that was fetched: merge and load the candidate again, and make
    another with `order.start` set to that look's count, and what `finish` gave. In what way its answers may then differ
    from those of one go: see `PreparedSplit.score_in_order`.

    Args:
        evaluators: actors that hold the same weights.
        split: "validation" or "test".
        order: which items, and when to look.
        before: what is known of the first `order.start` items.
    """

    def __init__(
        self, evaluators: Sequence[Actor[Evaluator]], split: Split, order: Order, before: Answered | None = None
    ) -> None:
        if order.start != (0 if before is None else before.count):
            raise ValueError(f"the order starts at item {order.start}, which is not where the candidate was stopped")
        self._evaluators, self._split, self._order, self._before = list(evaluators), split, order, before
        self._counts = list(order.counts)
        self._count = order.start
        self._items: dict[int, GradedItem] = {}
        count = len(self._evaluators)
        self._streams = [
            one.stream(Evaluator.looks, split, order, Share(index, count)) for index, one in enumerate(self._evaluators)
        ]
        self._stopped = False

    def next_look(self) -> Look | None:
        """Wait until the next look is complete on all evaluators; None after the last, or once it was stopped.

        Raises:
            ray.exceptions.RayError: what an evaluator failed with; the others are stopped.
        """
        if not self._counts:
            return None
        added: dict[int, GradedItem] = {}
        try:
            for stream in self._streams:
                added |= next(stream)
        except StopIteration:
            if self._stopped:
                return None
            raise RuntimeError("an evaluator ended before its last look") from None
        except Exception:
            self.stop()
            raise
        begin, self._count = self._count, self._counts.pop(0)
        self._items |= added
        return Look(self._count, {place: added[place] for place in self._order.places[begin : self._count]})

    def stop(self) -> None:
        """Say that no more is wanted; from any thread, any number of times."""
        self._stopped = True
        for stream in self._streams:
            stream.cancel()

    def given(self, seconds: float) -> Answered:
        """What is known where an evaluator was lost, so that `finish` cannot say what it took.

        Args:
            seconds: that this go took.
        """
        spent = Spent(seconds=seconds)
        if self._before is not None:
            spent = self._before.graded.spent.then(spent)
            self._items |= self._before.graded.items
        version = "" if self._before is None else self._before.graded.version
        return Answered(GradedShare(self._items, version, spent), self._count)

    def finish(self) -> tuple[Scores, Answered]:
        """Stop, unless all looks were fetched, and wait until the evaluators are free.

        Returns:
            scores of all items whose looks were fetched, by this and earlier goes, and what another go needs.
        """
        if self._counts:
            self.stop()
        shares = ray.get([one.call(Evaluator.spent) for one in self._evaluators])
        spent, version = reduce(Spent.beside, [share.spent for share in shares]), shares[0].version
        if self._before is not None:
            if self._before.graded.version != version:
                raise ValueError(f"the engines hold {version}, not {self._before.graded.version}, which is to go on")
            spent = self._before.graded.spent.then(spent)
            self._items |= self._before.graded.items
        graded = GradedShare(self._items, version, spent)
        combine = self._evaluators[0].method(Evaluator.combine)
        return ray.get(combine(self._split, [graded], partial=True)), Answered(graded, self._count)
