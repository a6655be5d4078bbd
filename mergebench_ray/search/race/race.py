"""The protocol of a race, and what all kinds share: who is in it and what has been answered."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.race.board import Board
from mergebench_ray.search.race.contrasts import Contrasts, Floats
from mergebench_ray.search.race.decision import Action, Decision, Estimate
from mergebench_ray.search.race.items import Integers, Items
from mergebench_ray.search.race.order import stratified_order

State = Literal["running", "paused", "stopped", "done"]


class Race(ABC):
    """Decides, report by report, which candidates are scored on.

    It is driven by events and never asks for anything: `report` whenever a candidate has answered the items up to a
    look, `close` once no further candidate will come. Both return decisions, in the order in which they take effect:
    about the candidate that reported, and about paused ones. What is decided depends on the reports and their order
    alone. A candidate is known by its trial number, and begins with the items up to `first_look`. Not safe for use from
    several threads at once.

    Args:
        items: of the split, in the race's order.
        objective: what candidates are compared by.
        look: items between two looks.
        candidates: how many are expected; None where that is not known.
    """

    order: ClassVar[Callable[[Items, int], Integers]] = staticmethod(stratified_order)
    """Makes the order of a run's items from the items and the run's seed."""

    def __init__(self, items: Items, objective: Objective, *, look: int = 20, candidates: int | None = None) -> None:
        self.board = Board(Contrasts(items, objective))
        self.items = len(items)
        self.look = look
        self.candidates = candidates
        self.closed = False
        self.first_look = min(self.items, look * math.ceil(self.board.contrasts.first_look(look) / look))
        self._state: dict[int, State] = {}
        self._sign = 1.0 if objective.direction == "maximize" else -1.0

    def report(self, candidate: int, scores: Sequence[float] | Floats) -> list[Decision]:
        """Take what a candidate scored on the first items of the order, up to a look.

        Args:
            candidate: its trial number.
            scores: of all items that it has answered so far, in order.

        Raises:
            ValueError: it was stopped or is done, or the scores are not more than it had or no numbers.
        """
        if self._state.get(candidate) in ("stopped", "done"):
            raise ValueError(f"candidate {candidate} is {self._state[candidate]}, yet reports")
        answered = self.board.report(candidate, scores)
        self._state[candidate] = "running"
        return self._decide(candidate, answered)

    def withdraw(self, candidate: int) -> list[Decision]:
        """A candidate will not report again, such as one that failed; nobody waits for it or is compared with it."""
        self._state[candidate] = "stopped"
        self.board.forget(candidate)
        return self._settle()

    def close(self) -> list[Decision]:
        """No further candidate will come: raise those that are left until one is."""
        self.closed = True
        return self._settle()

    def reopen(self) -> None:
        """There will be more candidates after all."""
        self.closed = False

    @property
    def num_candidates(self) -> int:
        """Candidates that have reported, or were withdrawn."""
        return len(self._state)

    def knows(self, candidate: int) -> bool:
        """Whether a candidate has reported, or was withdrawn."""
        return candidate in self._state

    def state(self, candidate: int) -> State:
        """What the race last decided for a candidate; running until then."""
        return self._state[candidate]

    def in_state(self, *states: State) -> list[int]:
        """Candidates of which this was decided last, in the order of their first report."""
        return [candidate for candidate, state in self._state.items() if state in states]

    def finished(self) -> list[int]:
        """Candidates that have answered all that the race asks of them: all items."""
        return self.in_state("done")

    def items_left(self) -> int:
        """How many items will probably be asked for once no further candidate comes; rather more than less."""
        return 0 if self.in_state("done") else self.items

    def estimate(self, candidate: int) -> Estimate:
        """A candidate's objective, in the objective's own units and direction; NaN where nothing is known of it."""
        return self._estimated(self.board, self._sign, candidate)

    def estimates(self, candidate: int) -> dict[str, Estimate]:
        """The same of several objectives, by name; empty of a race by one."""
        return {}

    def distances(self, candidate: int) -> dict[str, float]:
        """How far a candidate probably is from keeping each constraint, by name; empty of a race that knows of none."""
        return {}

    def _estimated(self, board: Board, sign: float, candidate: int) -> Estimate:
        answered = board.answered(candidate)
        if not answered:
            return Estimate(math.nan, math.nan, 0, estimated=True)
        if answered == self.items:
            return Estimate(sign * board.value(candidate), 0.0, answered, estimated=False)
        value, error = board.estimate(candidate)
        return Estimate(sign * value, error, answered, estimated=True)

    @abstractmethod
    def _decide(self, candidate: int, answered: int) -> list[Decision]:
        """After a report."""

    def _settle(self) -> list[Decision]:
        """After the last candidate has come; nothing where none is paused for another's sake."""
        return []

    def _next_look(self, answered: int) -> int:
        return min(self.items, answered + self.look)

    def _go_on(self, candidate: int, until: int, **why: Any) -> Decision:
        return self._decided(candidate, "go on", "running", until, why)

    def _pause(self, candidate: int, **why: Any) -> Decision:
        return self._decided(candidate, "pause", "paused", None, why)

    def _stop(self, candidate: int, **why: Any) -> Decision:
        return self._decided(candidate, "stop", "stopped", None, why)

    def _done(self, candidate: int, **why: Any) -> Decision:
        return self._decided(candidate, "done", "done", None, why)

    def _decided(
        self, candidate: int, action: Action, state: State, until: int | None, why: dict[str, Any]
    ) -> Decision:
        self._state[candidate] = state
        answered = self.board.answered(candidate)
        reason = {"value": self._value(candidate), **why}
        return Decision(candidate, answered, action, answered if until is None else until, reason)

    def _value(self, candidate: int) -> Any:
        """What a candidate has come to so far, for the record of a decision."""
        value = self._sign * self.board.value(candidate)
        return value if math.isfinite(value) else None
