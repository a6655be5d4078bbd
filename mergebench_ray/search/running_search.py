"""What the parts of a search that take and keep its candidates have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race_order import RaceOrder
from mergebench_ray.search.records import Records
from mergebench_ray.search.session import Session
from mergebench_ray.search.study import RunStudy


@dataclass(frozen=True, kw_only=True)
class RunningSearch:
    """What a search is made of while it runs.

    Attributes:
        session: bank, engines and scorer.
        store: the run's trials.
        records: makes rows of measurements, and knows what an answer depends on.
        study: is told what each candidate is, and knows who proposed it.
        run: the run's folder.
        raced: race and order; None where every candidate is scored in full.
        on_finish: called with a candidate's row when it is on disk.
        on_decision: called with a decision of the race when it is on disk, before it is followed.
    """

    session: Session
    store: TrialStore
    records: Records
    study: RunStudy
    run: RunFolder
    raced: RaceOrder | None
    on_finish: Callable[[Trial], None]
    on_decision: Callable[[Decision], None]
