"""How a run is getting on, from its folder alone: on the machine where it runs, or on any that sees the folder."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular
from mergebench_ray.runs.leaderboard import best_candidate, describe, on_split, with_objective
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings, Worked, amount, tokens_of
from mergebench_ray.runs.trials import Trial, proposed, read_trials, searched

State = Literal["under way", "finished", "stopped"]


@dataclass(frozen=True, repr=False)
class RunStatus:
    """What a run's folder says of it.

    Attributes:
        name: the run's.
        folder: where it is.
        state: "under way" while a process works in it, else "finished" or "stopped".
        since: when the first sitting began; None where none has.
        last_row: when the last model was scored; None where none was.
        candidates: that are at their end, by what came of them ("scored", "stopped", "failed").
        most: that there may be; None where a budget decides.
        best: the best so far, and what it reaches on validation; "" without one.
        on_test: what the winner reaches on test; "" before.
        tokens: read and written.
        worked: for how long.
        next_step: what to do to go on, or to look at what came out.
    """

    name: str
    folder: str
    state: State
    since: datetime | None
    last_row: datetime | None
    candidates: dict[str, int]
    most: int | None
    best: str
    on_test: str
    tokens: int
    worked: Worked
    next_step: str

    def lines(self) -> list[str]:
        """The same for people."""
        done = sum(self.candidates.values())
        kinds = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.candidates.items()))
        # Runs of earlier versions do not say when they were worked on.
        minutes = "" if self.since is None else f"{amount(self.worked.minutes)} minutes, "
        tried = f"{done}" if self.most is None else f"{done} of {self.most}"
        return [
            f"{self.name}: {self.state}{self._since()}",
            f"candidates: {tried}{f' ({kinds})' if kinds else ''}",
            *([f"best so far: {self.best}"] if self.best else []),
            *([f"on test: {self.on_test}"] if self.on_test else []),
            f"spent: {minutes}{amount(self.tokens)} tokens",
            self.next_step,
        ]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _since(self) -> str:
        if self.since is None:
            return ""
        began = f", begun {self.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        if self.last_row is None or self.state != "under way":
            return began
        minutes = (datetime.now(UTC) - self.last_row).total_seconds() / 60
        return f"{began}, last model scored {amount(max(0.0, minutes))} minutes ago"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        times = {
            name: one.isoformat() if one else None for name, one in (("since", self.since), ("last_row", self.last_row))
        }
        return asdict(self) | times | {"worked": self.worked._asdict()}


def run_status(path: Path | str) -> RunStatus:
    """How a run is getting on.

    Raises:
        InputError: no run is there, or it is damaged.
    """
    run = RunFolder(path)
    if not run.sweep_file.is_file():
        raise InputError(
            f"{path}: holds no run (no {run.sweep_file.name} there); name the folder that `tune` was given"
        )
    sweep = Sweep.from_yaml(run.sweep_file)
    trials = read_trials(run.path) if run.trials_file.exists() else []
    best = best_candidate(trials)
    on_test = on_split(trials, best, "test") if best is not None else None
    sittings = Sittings(run)
    state = _state(run, is_whole=on_test is not None and run.model_folder.is_dir())
    return RunStatus(
        name=sweep.name,
        folder=str(path),
        state=state,
        since=sittings.first(),
        last_row=max((one.finished for one in trials), default=None),
        candidates=dict(Counter(map(_outcome, searched(trials)))),
        most=sweep.search.most_candidates if sweep.search.budget is None else None,
        best="" if best is None else f"{describe(best)}, {with_objective(best)}",
        on_test="" if on_test is None else with_objective(on_test),
        tokens=sum(map(tokens_of, trials)),
        worked=sittings.spent(trials, datetime.now(UTC) if state == "under way" else None),
        next_step=_next_step(run, state, trials),
    )


def _outcome(trial: Trial) -> str:
    if trial.estimate is not None:
        return "stopped"
    return "scored" if trial.is_scored else "failed"


def _next_step(run: RunFolder, state: State, trials: Sequence[Trial]) -> str:
    if state == "under way":
        return f"what it says: {run.log_file}"
    if state == "finished":
        return f"report: {run.report_file}"
    kept = f"{done} candidates are kept" if (done := len(proposed(trials))) else "no candidate has come to its end"
    return f"{kept}: go on with the command that began it and --resume"


def _state(run: RunFolder, *, is_whole: bool) -> State:
    if _is_locked(run):
        return "under way"
    return "finished" if is_whole else "stopped"


def _is_locked(run: RunFolder) -> bool:
    """Whether a process works in the folder, wherever it runs if the file system tells hosts of each other's locks."""
    try:
        with open_regular(run.lock_file) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
