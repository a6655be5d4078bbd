"""What a run has cost so far, in the units of a budget: from its rows, and from when it was worked on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from mergebench_ray.errors import InputError
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, proposed

UNITS = {"candidates": "candidates", "tokens": "tokens", "minutes": "minutes", "gpu_hours": "GPU hours"}
"""Units of a budget, and what people call them."""


class Worked(NamedTuple):
    """For how long a run was worked on, all sittings together.

    Attributes:
        minutes: of wall time.
        gpu_hours: of wall time, each sitting's times the GPUs that it held.
    """

    minutes: float = 0.0
    gpu_hours: float = 0.0


class _Began(BaseModel):
    began: AwareDatetime
    gpus: float = Field(ge=0, allow_inf_nan=False)


class _Ended(BaseModel):
    ended: AwareDatetime


class _Enough(BaseModel):
    enough: int = Field(ge=0)
    budget: dict[str, float]


class _Searching(BaseModel):
    searching: AwareDatetime


_Line = _Began | _Ended | _Enough | _Searching
_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)


class Sittings:
    """When a run was worked on, and which budget has ended its search: a line of JSON for each in the run's folder.

    A sitting that was killed has no end; it is taken to have lasted until the last row that was written in it.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = JsonLines(run.sittings_file)

    @contextmanager
    def sitting(self, began: datetime, gpus: float) -> Iterator[None]:
        """The run is worked on until the block ends.

        Args:
            began: since when.
            gpus: GPUs that it holds.
        """
        self._file.append([{"began": began.isoformat(), "gpus": gpus}])
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk is told by what met it first
                self._file.append([{"ended": datetime.now(UTC).isoformat()}])

    def first(self) -> datetime | None:
        """When the run was first worked on; None where it has not been."""
        return next((line.began for line in self._lines() if isinstance(line, _Began)), None)

    def check(self) -> None:
        """Find out before anything starts whether the file can be read.

        Raises:
            InputError: it is damaged.
        """
        self._lines()

    def note_search(self) -> None:
        """The search begins, or goes on."""
        self._file.append([{"searching": datetime.now(UTC).isoformat()}])

    def have_searched(self) -> bool:
        """Whether a search has begun."""
        return any(isinstance(line, _Searching) for line in self._lines())

    def note_enough(self, budget: Mapping[str, float], candidates: int) -> None:
        """The budget pays no further candidate after so many."""
        self._file.append([{"enough": candidates, "budget": dict(budget)}])

    def enough(self, budget: Mapping[str, float]) -> int | None:
        """After how many candidates this very budget has ended the search; None where it has not."""
        lines = [line for line in self._lines() if isinstance(line, _Enough)]
        return lines[-1].enough if lines and lines[-1].budget == dict(budget) else None

    def spent(self, trials: Sequence[Trial], now: datetime | None = None) -> Worked:
        """Minutes and GPU hours of all sittings.

        Args:
            trials: the run's.
            now: end of the sitting that is under way; None where there is none.
        """
        minutes = gpu_hours = 0.0
        for one in self._sittings(trials, now):
            minutes += one.seconds / 60
            gpu_hours += one.seconds / 3600 * one.gpus
        return Worked(minutes, gpu_hours)

    def start(self, trials: Sequence[Trial], now: datetime) -> float:
        """Minutes of a sitting, at most so far, that are no row's, as those in which engines start; as of `spent`."""
        own = [one for one in trials if not one.taken_from]
        return max((one.of_no_row(own) / 60 for one in self._sittings(trials, now)), default=0.0)

    def _sittings(self, trials: Sequence[Trial], now: datetime | None) -> list[_Sitting]:
        lines = [line for line in self._lines() if isinstance(line, _Began | _Ended)]
        found = []
        for line, after in zip(lines, [*lines[1:], None]):
            if isinstance(line, _Ended):
                continue
            began = line.began
            if isinstance(after, _Ended):
                ended = after.ended
            elif after is None and now is not None:
                ended = now
            else:
                until = datetime.max.replace(tzinfo=UTC) if after is None else after.began
                ended = max((one.finished for one in trials if began <= one.finished <= until), default=began)
            found.append(_Sitting(began, max(began, ended), line.gpus))
        return found

    def _lines(self) -> list[_Line]:
        found = []
        for number, line in enumerate(self._file.read(), start=1):
            try:
                found.append(_LINE.validate_python(line))
            except ValidationError as error:
                raise InputError(
                    f"{self._file.path}, line {number}: damaged, no sitting that begins or ends; restore it from "
                    "a copy, or start again in another folder"
                ) from error
        return found


class _Sitting(NamedTuple):
    began: datetime
    ended: datetime
    gpus: float

    @property
    def seconds(self) -> float:
        return (self.ended - self.began).total_seconds()

    def of_no_row(self, trials: Sequence[Trial]) -> float:
        """Seconds that none of some rows took."""
        rows = sum(seconds_of(one) for one in trials if self.began <= one.finished <= self.ended)
        return max(0.0, self.seconds - rows)


def tokens_of(trial: Trial) -> int:
    """Tokens that engines and judges read and wrote for a row."""
    return trial.tokens + trial.judge_tokens


def seconds_of(trial: Trial) -> float:
    """Wall time that a row took: merging, loading and scoring."""
    return trial.merge_seconds + trial.load_seconds + trial.score_seconds


def amount(value: float) -> str:
    """So much of a unit, for people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def budget_finding(run: RunFolder, trials: Sequence[Trial], limits: Mapping[str, float]) -> str:
    """What of a budget was spent by a run that is not under way, in one sentence.

    Args:
        run: the run's folder.
        trials: the run's.
        limits: the budget.
    """
    minutes, gpu_hours = Sittings(run).spent(trials)
    tried = len(proposed(trials))
    spent = {
        "candidates": float(tried),
        "tokens": float(sum(map(tokens_of, trials))),
        "minutes": minutes,
        "gpu_hours": gpu_hours,
    }
    parts = [f"{amount(spent[unit])} of {amount(limit)} {UNITS[unit]}" for unit, limit in limits.items()]
    return f"Of its budget the search has spent {', '.join(parts)}, and tried {tried} candidates."
