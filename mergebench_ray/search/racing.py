"""A search's candidates as they come, wait, are stopped or scored in full; and what is kept of each step, and when.

Nothing here knows of Tune. Whatever is decided is on disk before the next step begins, so that a search that was killed
at any moment goes on as it would have gone on.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.ordered_scoring import Look
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.budget import UnderWay
from mergebench_ray.search.candidate_rows import CandidateRows
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race_candidate import Candidate, CandidateAnswers
from mergebench_ray.search.running_search import RunningSearch
from mergebench_ray.search.scorer import GivenUp, Measurement
from mergebench_ray.search.standing import Cost, Standing

_log = logging.getLogger(__name__)

Next = Literal["go on", "wait", "end"]
"""What a candidate's trial does after a step."""
_CLOSED = {"action": "close"}
_REOPENED = {"action": "reopen"}
_GIVE_UP = "give up"


class Racing:
    """Takes what candidates have answered, asks the race, keeps the answer, and does what it says.

    Args:
        search: what it works with.
        recipes: what a candidate is, by its number in the study.

    Attributes:
        raised: candidates that waited and are to be scored on, in their order.
        ended: those that were at their end with a decision about another, and whose trials do not know it yet.
    """

    def __init__(self, search: RunningSearch, recipes: Callable[[int], Recipe]) -> None:
        self._session, self._store, self._records, self._run = search.session, search.store, search.records, search.run
        self._raced, self._race = search.raced, None if search.raced is None else search.raced.race
        self._recipes = recipes
        self._rows = CandidateRows(search)
        self._answers = CandidateAnswers(search)
        self._decisions = JsonLines(search.run.decisions_file)
        self._on_decision = search.on_decision
        self._open: dict[int, Candidate] = {}
        self.raised: deque[int] = deque()
        self.ended: list[int] = []

    @property
    def values(self) -> Mapping[int, float | list[float] | None]:
        """Of candidates at their end: what the study is told, of several objectives a list; None for no value."""
        return self._rows.values

    # What the driver says

    def begin(self, number: int) -> Next:
        """A candidate was proposed, or comes again after an interruption.

        Returns:
            what its trial does: go on, wait, or nothing, where all that it would be asked is known from other runs.
        """
        if number not in self._open:
            until = 0 if self._race is None else self._race.first_look
            self._open[number] = Candidate(datetime.now(UTC), until=until)
            self._take_known(number, self._open[number])
            if number not in self._open:
                return "end"
            return "wait" if self._open[number].items else "go on"
        waits, self._open[number].again = self._open[number].again, False
        return "wait" if waits else "go on"

    def has(self, number: int) -> bool:
        """Whether a candidate has begun, in this sitting or an earlier one that did not see its end."""
        return number in self._open or number in self.values

    def step(self, number: int, recipe: Recipe, found: Measurement | Look | GivenUp | None) -> Next:
        """A candidate's trial has made a step.

        Args:
            number: of the candidate.
            recipe: what it is.
            found: what the scorer found; None of a model that was scored before.
        """
        candidate = self._open[number]
        candidate.recipe = recipe
        if isinstance(found, Measurement):
            self._end(number, found)
            return "end"
        if isinstance(found, GivenUp):
            self._give_up(number, found.reason)
            return "end"
        if isinstance(found, Look):
            return self._looked(number, candidate, found)
        return self._known_before(number, recipe)

    def close(self) -> None:
        """No further candidate will come."""
        if self._race is not None and not self._race.closed:
            self._follow(self._race.close(), None, [_CLOSED])

    def is_open(self) -> bool:
        """Whether a candidate is not at its end."""
        return bool(self._open)

    def under_way(self, going: int) -> UnderWay:
        """What the candidates have cost that are not at their end, and what is ahead of them.

        Args:
            going: how many of them are being scored.
        """
        left = 0 if self._race is None else self._race.items_left()
        return UnderWay([candidate.cost for candidate in self._open.values()], going, left)

    def come_again(self) -> list[int]:
        """Candidates of an earlier sitting whose trials have not come again yet."""
        return [number for number, candidate in self._open.items() if candidate.again]

    # What happens

    def _take_known(self, number: int, candidate: Candidate) -> None:
        """Ask nothing that other runs know; of a race, as far as they know the first items of its order."""
        recipe = self._recipes(number)
        if self._store.find(recipe.digest, self._records.items_digest("validation"), "validation") is not None:
            return
        known = self._records.known(recipe.digest, "validation")
        if not known.items:
            return
        candidate.recipe = recipe
        if self._raced is None:
            self._session.scorer.keep(number, Standing(recipe.digest, known.items, Cost(reused=known.sources)))
            if known.is_all:
                self._end(number, self._session.scorer.measured(number))
            return
        candidate.known = known
        until = self._raced.race.items if known.is_all else self._raced.race.first_look
        if candidate.knows(self._raced.places, until):
            self._follow(self._report_known(number, until), number, asked=False)

    def _report_known(self, number: int, until: int) -> list[Decision]:
        """Report a candidate's first items as other runs know them."""
        assert self._raced is not None
        candidate = self._open[number]
        self._answers.keep(number, candidate, candidate.take_known(self._raced.places, until), candidate.cost)
        candidate.measurement = self._answers.restored(number, candidate, until)
        return self._raced.race.report(number, self._raced.scores(candidate.items, until))

    def _looked(self, number: int, candidate: Candidate, look: Look) -> Next:
        assert self._raced is not None
        race = self._raced.race
        new = {place: item for place, item in look.items.items() if place not in candidate.items}
        # Decisions were made from what is on disk, so that counts where an answer differs that was asked again.
        candidate.differs |= any(candidate.items.get(place, item).row != item.row for place, item in look.items.items())
        candidate.items = {**look.items, **candidate.items}
        if look.count < candidate.until or look.count <= race.board.answered(number):
            self._answers.keep(number, candidate, new)
            return "go on"
        decisions = race.report(number, self._raced.scores(candidate.items, look.count))
        if decisions[0].action == "go on":
            self._answers.keep(number, candidate, new)
        else:
            # Engines that wait cost most, so they are freed before anything is written.
            candidate.measurement, standing = self._session.scorer.halt(number)
            candidate.cost = standing.cost
            self._answers.keep(number, candidate, new, standing.cost)
            if candidate.differs:
                _log.warning("candidate %d: answers that were asked again differ; the first ones count", number)
                candidate.measurement = self._answers.restored(number, candidate, look.count)
        self._follow(decisions, number)
        if number not in self._open:
            return "end"
        return "go on" if decisions[0].action == "go on" else "wait"

    def _known_before(self, number: int, recipe: Recipe) -> Next:
        before = self._store.find(recipe.digest, self._records.items_digest("validation"), "validation")
        assert before is not None, "the scorer knew a candidate that is not stored"
        if self._raced is not None:
            scores = self._raced.kept_scores(self._store.folder, before)
            self._follow(self._raced.race.report(number, scores), number)
        else:
            self._end(number, None)
        return "end"

    def _give_up(self, number: int, reason: str) -> None:
        """A candidate failed: nobody waits for it, or is compared with it."""
        if self._race is not None:
            line = {"candidate": number, "answered": 0, "action": _GIVE_UP, "why": {"reason": reason}}
            self._follow(self._race.withdraw(number), None, [line])
        self._rows.give_up(number, self._open.pop(number), reason)

    def _follow(
        self, decisions: Sequence[Decision], reporting: int | None, before: Sequence[Any] = (), *, asked: bool = True
    ) -> None:
        """Keep decisions, then do what they say, and what follows where other runs know the answers.

        Args:
            decisions: of the race.
            reporting: the candidate whose report or coming has led to them, and whose trial is told by the caller.
            before: lines that come before them.
            asked: whether engines are at work on that one.
        """
        self._keep(decisions, before)
        self._go_on_known(self._do(decisions, reporting, asked=asked), reporting)

    def _keep(self, decisions: Sequence[Decision], before: Sequence[Any] = ()) -> None:
        self._decisions.append([*before, *(one.record() for one in decisions)])
        for one in decisions:
            self._on_decision(one)

    def _do(self, decisions: Sequence[Decision], reporting: int | None, *, asked: bool) -> list[int]:
        """Do what decisions say; those that go on with answers that other runs know."""
        found = []
        for place, decision in enumerate(decisions):
            number, candidate = decision.candidate, self._open[decision.candidate]
            if decision.action == "go on":
                candidate.until = decision.until
                if not (asked and not place and number == reporting):  # one that reports may wait and be raised at once
                    found += [number] if self._knows_further(candidate) else []
                    if number not in found:
                        self._raise(number)
            elif decision.action in ("stop", "done"):
                self._end(number, candidate.measurement)
                if number != reporting:
                    self.ended.append(number)
        return found

    def _knows_further(self, candidate: Candidate) -> bool:
        return self._raced is not None and candidate.knows(self._raced.places, candidate.until)

    def _go_on_known(self, numbers: Iterable[int], reporting: int | None) -> None:
        """Report what other runs know of candidates, and what that leads to, as far as they know it."""
        left = deque(numbers)
        while left:
            number = left.popleft()
            decisions = self._report_known(number, self._open[number].until)
            self._keep(decisions)
            left += self._do(decisions, reporting, asked=False)

    def _raise(self, number: int) -> None:
        self._session.scorer.go_on(number, self._open[number].until)
        self.raised.append(number)

    def _end(self, number: int, measurement: Measurement | None) -> None:
        self._rows.end(number, self._open.pop(number), measurement)

    # After an interruption

    def restore(self, candidates: int) -> None:
        """Bring the race to where the decisions on disk left it.

        A candidate that was being scored begins its go again, from its last stand, so that its answers are those that
        it would have given.

        Args:
            candidates: how many there will be; 0 where no other will come.

        Raises:
            InputError: the decisions are not those that the answers on disk lead to.
        """
        if self._raced is None:
            return
        race, records = self._raced.race, deque(self._decisions.read())
        if records and records[0].get("action") == "begin":
            race.candidates = records.popleft()["candidates"]
        else:
            self._decisions.append([{"action": "begin", "candidates": race.candidates, "items": race.items}])
        rows = {one.optuna_number: one for one in searched(self._store.trials())}
        stands: dict[int, int] = {}
        while records:
            first = records.popleft()
            given: list[dict[str, Any]] = []
            if first.get("action") == "reopen":
                race.reopen()
                continue
            if first.get("action") == "close":
                expected = race.close()
            elif first.get("action") == _GIVE_UP:
                failed = int(first["candidate"])
                if failed not in rows:
                    self._reopened(failed).given_up = str(first["why"]["reason"])
                expected = race.withdraw(failed)
            else:
                expected, given = self._reported(first, rows), [first]
            while records and len(given) < len(expected):
                given.append(records.popleft())
            wanted = [json.loads(json.dumps(one.record())) for one in expected]
            if given != wanted[: len(given)]:
                raise InputError(
                    f"{self._decisions.path}: its decisions are not those that the answers in {self._run.race_folder} "
                    "lead to: a file was changed, or another version wrote it; start a new run with another --out"
                )
            self._decisions.append(wanted[len(given) :])
            for decision in expected:
                if decision.candidate in self.raised:
                    self.raised.remove(decision.candidate)
                if (found := self._open.get(decision.candidate)) is None:
                    continue
                found.until = decision.until
                if decision.answered in found.stood:
                    stands[decision.candidate] = decision.answered
                    if decision.action == "go on":
                        self.raised.append(decision.candidate)
        for number, row in rows.items():
            # Of a run that was begun by a version that did not race.
            if row.role == "candidate" and number is not None and not race.knows(number):
                decided = race.report(number, self._raced.kept_scores(self._store.folder, row))
                self._decisions.append([one.record() for one in decided])
        if race.closed and race.num_candidates < candidates:
            self._decisions.append([_REOPENED])
            race.reopen()
        for number, candidate in list(self._open.items()):
            self._stand_again(number, candidate, stands.get(number, 0))
        for number, candidate in self._open.items():
            candidate.known = self._records.known(self._recipes(number).digest, "validation")
        known = [number for number in self.raised if self._knows_further(self._open[number])]
        self.raised = deque(number for number in self.raised if number not in known)
        self._go_on_known(known, None)

    def _reported(self, first: dict[str, Any], rows: dict[int | None, Trial]) -> list[Decision]:
        """What the race decides on a report that is on disk."""
        assert self._raced is not None
        number, count = int(first["candidate"]), int(first["answered"])
        row = rows.get(number)
        if row is not None and row.role == "candidate":
            scores = self._raced.kept_scores(self._store.folder, row, count)
        else:
            try:
                scores = self._raced.scores(self._reopened(number).items, count)
            except KeyError:
                raise InputError(
                    f"{self._run.answered_file(number)}: lacks answers that a decision was made from; restore it from "
                    "a copy, or start a new run with another --out"
                ) from None
        return self._raced.race.report(number, scores)

    def _reopened(self, number: int) -> Candidate:
        """A candidate of an earlier sitting, with the answers that are on disk."""
        if number not in self._open:
            self._open[number] = self._answers.read(number, self._recipes(number))
        return self._open[number]

    def _stand_again(self, number: int, candidate: Candidate, stand: int) -> None:
        """A candidate of an earlier sitting that has no row, or is not at its end."""
        assert self._race is not None
        state = self._race.state(number)
        if any(one.optuna_number == number for one in searched(self._store.trials())):
            del self._open[number]
            return
        if candidate.given_up:
            self._rows.give_up(number, self._open.pop(number), candidate.given_up)
            return
        ends = state in ("stopped", "done")
        count = self._race.board.answered(number) if ends else stand
        if not count:  # it was new: it comes again as such
            candidate.again = False
            return
        candidate.measurement = self._answers.restored(number, candidate, count)
        if ends:
            self._end(number, candidate.measurement)
        elif number in self.raised:
            self._session.scorer.go_on(number, candidate.until)
