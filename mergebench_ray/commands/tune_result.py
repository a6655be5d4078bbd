"""What a search found, for programs and in lines for people."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.commands.opened_run import OpenedRun
from mergebench_ray.config.budget import BudgetOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.runs.leaderboard import (
    best_candidate,
    choice_title,
    describe,
    objective_title,
    on_split,
    what_is_missed,
    with_objective,
    with_objectives,
)
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import budget_finding
from mergebench_ray.runs.summary import RunSummary, leads_of
from mergebench_ray.runs.trials import SEARCHED, Trial, read_trials, searched


class TuneResult(OpenedRun):
    """What a search found; the same as of a run that was opened, and how its winner does on test.

    Args:
        folder: the run's.
        engine_share: share of the wall time, once the engines were up, in which they computed; None where another
            process searched.

    Attributes:
        folder: the same, absolute.
        engine_share: the same.

    Raises:
        InputError: no run is there, it is damaged, or its winner was not scored on test yet.
    """

    def __init__(self, folder: Path | str, engine_share: float | None = None) -> None:
        super().__init__(folder)
        self.engine_share = engine_share
        if self._winner("test") is None:
            raise InputError(f"{folder}: the run is not over; go on with the command that began it and --resume")

    @property
    def best(self) -> Trial:
        """The winner, as it was scored on validation (`best.coefficients`, `best.parameters`, `best.domains`)."""
        return self._one("validation")

    @property
    def final(self) -> Trial | None:
        """The winner on the items held back from the search; None without any."""
        return self._winner("final")

    @property
    def test(self) -> Trial:
        """The winner on the test split."""
        return self._one("test")

    @property
    def num_candidates(self) -> int:
        """How many candidates the search has tried."""
        return len(searched(self._trials()))

    @property
    def references(self) -> list[Trial]:
        """Base, specialists, plain average and simple task arithmetic, on all splits."""
        return [trial for trial in self._trials() if trial.role not in SEARCHED]

    def _lines(self) -> list[str]:
        return found_lines(self)

    def _one(self, split: Split) -> Trial:
        found = self._winner(split)
        if found is None:
            raise InputError(f"{self.folder}: its winner on {split} is gone; restore the folder")
        return found

    def _winner(self, split: Split) -> Trial | None:
        trials = self._trials()
        best = best_candidate(trials)
        return None if best is None else on_split(trials, best, split)


def found_lines(result: TuneResult) -> list[str]:
    """Who won and how it does on every split, in lines for people."""
    best, final, test = result.best, result.final, result.test
    beaten = [one for one in result.references if one.split == "test" and one.role in ("average", "reference")]
    title = objective_title(best.objective_name, best.domains)
    others = [with_objective(test), *(f"{describe(one)} {with_objective(one)}" for one in beaten)]
    missed = [f"{what_is_missed(one)} on {one.split}" for one in (best, test) if one.missed]
    return [
        f"best of {result.num_candidates} candidates: {best.label}, {title} {with_objective(best)} on validation",
        *([_of_front(result)] if best.choice is not None else []),
        *([f"on items held back: {_compared(final)}"] if final is not None else []),
        f"on test: {'; '.join(others)}",
        *([f"there it is {leads}"] if (leads := leads_of(test)) else []),
        *([f"it {' and '.join(missed)}"] if missed else []),
    ]


def summary(result: TuneResult, run: RunFolder, budget: BudgetOptions | None) -> list[str]:
    """What the search found and what it took, in lines for people."""
    trials = read_trials(run.path)
    found = RunSummary.of(trials)
    spent = "" if budget is None else budget_finding(run, trials, budget.limits)
    share = result.engine_share
    return [
        *found_lines(result),
        *filter(None, (found.race_finding(), found.race_cost(), spent, found.outlook())),
        *([] if share is None else [f"vLLM computed {share:.0%} of the time since it was up"]),
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
