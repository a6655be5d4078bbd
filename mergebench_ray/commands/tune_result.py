"""What a search found, for programs and in lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mergebench_ray.config.budget import BudgetOptions
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.runs.leaderboard import (
    choice_title,
    objective_title,
    what_is_missed,
    with_objective,
    with_objectives,
)
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import budget_finding
from mergebench_ray.runs.summary import RunSummary, leads_of
from mergebench_ray.runs.trials import Trial, read_trials, searched
from mergebench_ray.search.records import SIMPLE


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        folder: the run's folder.
        best: the winner, as it was scored on validation (`best.coefficients`, `best.parameters`, `best.domains`).
        front: with several objectives the candidates of which no other is better in everything on validation, in the
            order in which the sweep's choice takes them; else the best there alone.
        final: the same model on the items held back from the search; None without any.
        test: the same model on the test split.
        references: base, specialists, plain average and simple task arithmetic, on both splits.
        trials: a row per scored model, as in trials.parquet.
        engine_share: share of the wall time, once the engines were up, in which they computed.
    """

    folder: Path
    best: Trial
    front: list[Trial]
    final: Trial | None
    test: Trial
    references: list[Trial]
    trials: pa.Table
    engine_share: float


def summary(result: TuneResult, budget: BudgetOptions | None) -> list[str]:
    """What the search found, in lines for people."""
    run = RunFolder(result.folder)
    trials = read_trials(result.folder)
    found, count = RunSummary.of(trials), len(searched(trials))
    on_test = {(t.role, t.name): t for t in result.references if t.split == "test"}
    average = on_test["average", AVERAGE]
    simple = on_test["reference", SIMPLE]
    title = objective_title(result.best.objective_name, result.best.domains)
    others = [with_objective(result.test), *(f"{one.name} {with_objective(one)}" for one in (average, simple))]
    spent = "" if budget is None else budget_finding(run, trials, budget.limits)
    missed = [f"{what_is_missed(one)} on {one.split}" for one in (result.best, result.test) if one.missed]
    return [
        f"best of {count} candidates: {result.best.label}, {title} {with_objective(result.best)} on validation",
        *([f"{_of_front(result)}"] if result.best.choice is not None else []),
        *([f"on items held back: {_compared(result.final)}"] if result.final is not None else []),
        f"on test: {'; '.join(others)}",
        *([f"there it is {leads}"] if (leads := leads_of(result.test)) else []),
        *([f"it {' and '.join(missed)}"] if missed else []),
        *filter(None, (found.race_finding(), found.race_cost(), spent, found.outlook())),
        f"vLLM computed {result.engine_share:.0%} of the time since it was up",
        f"model: {run.model_folder}",
        f"report: {run.report_file}",
    ]


def _of_front(result: TuneResult) -> str:
    best = result.best
    assert best.choice is not None
    by = f"chosen by {choice_title(best.choice)}"
    place = "of" if best in result.front else "next to"
    return f"{place} a front of {len(result.front)}, {by}: {with_objectives(best)} on validation"


def _compared(final: Trial) -> str:
    """The winner on the items held back, against what it has to beat and those that it could not leave."""
    text = ", ".join(filter(None, (with_objective(final), leads_of(final))))
    return f"{text}; no simpler and not told from the best: {', '.join(final.tied_with)}" if final.tied_with else text
