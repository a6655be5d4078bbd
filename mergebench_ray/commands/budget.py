"""The budget of a search that `tune` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import ray
import torch

from mergebench_ray.commands.ready_sweep import ReadySweep, earlier_runs
from mergebench_ray.config import Sweep
from mergebench_ray.config.race import NONE
from mergebench_ray.placement import engines_per_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings
from mergebench_ray.runs.trials import TrialStore
from mergebench_ray.runtime import ray_session
from mergebench_ray.search import warm_start
from mergebench_ray.search.budget import RunBudget, Work, check_gpus


@contextmanager
def running_budget(ready: ReadySweep, run: RunFolder, store: TrialStore, began: datetime) -> Iterator[RunBudget]:
    """The budget of a run that is worked on until the block ends; Ray is there.

    Args:
        ready: the sweep.
        run: the run's folder.
        store: its trials.
        began: when the command did.

    Raises:
        InputError: GPU hours on a cluster without GPUs.
    """
    sweep, gpus, sittings = ready.sweep, _gpus_held(ready), Sittings(run)
    taken = sum(one.trial.role == "candidate" for one in warm_start.read(run))
    groups = sweep.engine.count // engines_per_candidate(sweep)
    work = Work(ready.items, len(sweep.methods), groups, raced=ready.race.kind != NONE, taken=taken)
    budget = RunBudget(sweep.search, work, gpus, store, sittings, earlier_runs(sweep, run))
    with sittings.sitting(began, gpus):
        yield budget


def check_gpu_hours(sweep: Sweep, address: str | None = None, *, connects: bool = True) -> None:
    """Refuse a budget of GPU hours where there are no GPUs, before anything is started or made.

    Args:
        sweep: the sweep.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        connects: whether a cluster is asked; without it only this machine is known.

    Raises:
        InputError: saying what to give instead, or the cluster cannot be reached.
    """
    budget = sweep.search.budget
    if budget is None or budget.gpu_hours is None:
        return
    address = address or os.environ.get("RAY_ADDRESS", "local")
    if address == "local" and not ray.is_initialized():
        check_gpus(budget, torch.cuda.device_count())
    elif connects:
        with ray_session(address):
            check_gpus(budget, float(ray.cluster_resources().get("GPU", 0)))


def _gpus_held(ready: ReadySweep) -> float:
    """GPUs of engines, judges and the bank's shards; 0 on a cluster without."""
    there = float(ray.cluster_resources().get("GPU", 0))
    engine, shards = ready.sweep.engine, ready.sweep.bank.shards
    held = engine.count * engine.gpus + sum(one.judge.gpus for one in ready.models.judges.values())
    return min(there, held + (shards if there >= shards else 0))
