"""The rows of a search's candidates: scored in full, stopped by the race, or scored before under another number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergebench_ray.config import Recipe
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.race_candidate import Candidate
from mergebench_ray.search.race_order import RaceOrder
from mergebench_ray.search.records import Records, repeated
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.session import Session
from mergebench_ray.search.study import RunStudy, told_value


class CandidateRows:
    """Keeps what candidates have come to, and tells scorer, study and driver.

    Args:
        session: has the scorer.
        store: the run's trials.
        records: makes rows of measurements.
        study: knows who proposed a candidate.
        run: the run's folder.
        raced: race and order; None where every candidate is scored in full.
        on_finish: called with a candidate's row when it is on disk.

    Attributes:
        values: of candidates at their end: what the study is told, of several objectives a list; None for one without a
            value.
    """

    def __init__(
        self,
        session: Session,
        store: TrialStore,
        records: Records,
        study: RunStudy,
        run: RunFolder,
        raced: RaceOrder | None,
        on_finish: Callable[[Trial], None],
    ) -> None:
        self._session, self._store, self._records, self._study, self._run = session, store, records, study, run
        self._raced, self._on_finish = raced, on_finish
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
        self._keep(number, row, self._records.item_rows("validation", items))

    def give_up(self, number: int, candidate: Candidate, reason: str) -> None:
        """Keep the row of a candidate that failed."""
        recipe, names = self._named(number, candidate)
        self._keep(number, self._records.failed(recipe, candidate.started, reason, **names), [])

    def _keep(self, number: int, row: Trial, items: Sequence[Mapping[str, Any]]) -> None:
        self._store.append(row, items)
        if row.role == "candidate":
            self._run.answered_file(number).unlink(missing_ok=True)
        self._session.scorer.end(number, row.digest if row.role == "candidate" else None)
        self._study.describe(row)
        self.values[number] = told_value(row)
        self._on_finish(row)

    def _row(self, number: int, candidate: Candidate, measurement: Measurement | None) -> Trial:
        recipe, names = self._named(number, candidate)
        if measurement is None:
            before = self._store.find(recipe.digest, self._records.items_digest("validation"), "validation")
            assert before is not None, "the scorer knew a candidate that is not stored"
            return repeated(before, role="candidate", name=recipe.method, **names)
        if self._raced is None or self._raced.race.state(number) == "done":
            started = candidate.started
            return self._records.trial("candidate", recipe.method, "validation", recipe, measurement, started, **names)
        return self._records.stopped(recipe, measurement, candidate.started, **self._raced.come_to(number), **names)

    def _named(self, number: int, candidate: Candidate) -> tuple[Recipe, dict[str, Any]]:
        recipe = candidate.recipe
        assert recipe is not None
        names: dict[str, Any] = {"number": self._free_number(recipe.method, number), "optuna_number": number}
        return recipe, names | {"proposed_by": self._study.proposed_by(number)}

    def _free_number(self, method: str, number: int) -> int:
        """The trial's number in the study, unless an earlier version, which counted otherwise, has given it away."""
        taken = {one.number for one in searched(self._store.trials()) if one.name == method}
        while number in taken:
            number += 1
        return number
