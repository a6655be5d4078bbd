"""The rows of a search's candidates: scored in full, stopped by the race, or scored before under another number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergebench_ray.config import Recipe
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.race_candidate import Candidate
from mergebench_ray.search.records import repeated
from mergebench_ray.search.running_search import RunningSearch
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.study import told_value


class CandidateRows:
    """Keeps what candidates have come to, and tells scorer, study and driver.

    Args:
        search: what it works with.

    Attributes:
        values: of candidates at their end: what the study is told, of several objectives a list; None for one without a
            value.
    """

    def __init__(self, search: RunningSearch) -> None:
        self._search = search
        self.values: dict[int, float | list[float] | None] = {}

    def end(self, number: int, candidate: Candidate, measurement: Measurement | None) -> None:
        """Keep the row of a candidate that is at its end.

        Args:
            number: in the study.
            candidate: the candidate.
            measurement: what it has scored; None where that is on disk already.
        """
        row = self._row(number, candidate, measurement)
        items = measurement.items if measurement is not None and row.role == "candidate" else {}
        self._keep(number, row, self._search.records.item_rows("validation", items))

    def give_up(self, number: int, candidate: Candidate, reason: str) -> None:
        """Keep the row of a candidate that failed."""
        recipe, names = self._named(number, candidate)
        self._keep(number, self._search.records.failed(recipe, candidate.started, reason, **names), [])

    def _keep(self, number: int, row: Trial, items: Sequence[Mapping[str, Any]]) -> None:
        self._search.store.append(row, items)
        if row.role == "candidate":
            self._search.run.answered_file(number).unlink(missing_ok=True)
        self._search.session.scorer.end(number, row.digest if row.role == "candidate" else None)
        self._search.study.describe(row)
        self.values[number] = told_value(row)
        self._search.on_finish(row)

    def _row(self, number: int, candidate: Candidate, measurement: Measurement | None) -> Trial:
        store, records, raced = self._search.store, self._search.records, self._search.raced
        recipe, names = self._named(number, candidate)
        if measurement is None:
            before = store.find(recipe.digest, records.items_digest("validation"), "validation")
            assert before is not None, "the scorer knew a candidate that is not stored"
            return repeated(before, role="candidate", name=recipe.method, **names)
        if raced is None or raced.race.state(number) == "done":
            started = candidate.started
            return records.trial("candidate", recipe.method, "validation", recipe, measurement, started, **names)
        return records.stopped(recipe, measurement, candidate.started, **raced.come_to(number), **names)

    def _named(self, number: int, candidate: Candidate) -> tuple[Recipe, dict[str, Any]]:
        recipe = candidate.recipe
        assert recipe is not None
        names: dict[str, Any] = {"number": self._free_number(recipe.method, number), "optuna_number": number}
        return recipe, names | {"proposed_by": self._search.study.proposed_by(number)}

    def _free_number(self, method: str, number: int) -> int:
        """The trial's number in the study, unless an earlier version, which counted otherwise, has given it away."""
        taken = {one.number for one in searched(self._search.store.trials()) if one.name == method}
        while number in taken:
            number += 1
        return number
