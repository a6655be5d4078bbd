"""The budget of a search that `tune` runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from mergebench_ray.commands.ready_sweep import ReadySweep, earlier_runs
from mergebench_ray.config.race import NONE
from mergebench_ray.placement import engines_per_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.search import warm_start
from mergebench_ray.search.budget import RunBudget, Work


@contextmanager
def running_budget(
    ready: ReadySweep, run: RunFolder, store: TrialStore, began: datetime, gpus: int
) -> Iterator[RunBudget]:
    """The budget of a run that is worked on until the block ends.

    Args:
        ready: the sweep.
        run: the run's folder.
        store: its trials.
        began: when the command did.
        gpus: that the run holds.

    Raises:
        InputError: GPU hours on a cluster without GPUs.
    """
    sweep, sittings = ready.sweep, Sittings(run)
    taken = sum(one.trial.role == "candidate" for one in warm_start.read(run))
    groups = sweep.engine.count // engines_per_candidate(sweep)
    work = Work(ready.items, len(sweep.methods), groups, raced=ready.race.kind != NONE, taken=taken)
    budget = RunBudget(sweep.search, work, gpus, store, sittings, earlier_runs(sweep, run))
    with sittings.sitting(began, gpus):
        yield budget
