"""Runs side by side: the best of each method in each run, what it scored and what it took to find."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from mergebench_ray.config import Sweep
from mergebench_ray.config.objective import DEFAULT
from mergebench_ray.errors import InputError
from mergebench_ray.runs.forgetting import Forgetting, read_forgetting
from mergebench_ray.runs.leaderboard import best_first, best_of_each_method, describe, objective_title, on_split
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import COMPARED_WITH, Trial, is_known, read_trials
from mergebench_ray.scores import ObjectiveValue

NOT_COMPARABLE = "not comparable: not scored on the same items and metrics"


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        name: the sweep's name, or the folder's.
        folder: where it is.
        sweep: what was run; None where the folder does not say.
        summary: its trials, sorted out.
        forgetting: name of a model ("base", or a method for its best) -> what was scored of what it may forget.
        notes: rules that were applied where its models differ, and judges that were missing.
    """

    name: str
    folder: Path
    sweep: Sweep | None
    summary: RunSummary
    forgetting: dict[str, Forgetting]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run's folder.

        Raises:
            InputError: if it holds no trials, or any of its files is damaged.
        """
        paths = RunFolder(folder)
        trials = read_trials(folder)
        if not trials:
            raise InputError(
                f"{paths.trials_file}: no model has been scored yet; wait for the first, or resume the run"
            )
        sweep = Sweep.from_yaml(paths.sweep_file) if os.path.lexists(paths.sweep_file) else None
        name = sweep.name if sweep else folder.resolve().name
        return cls(name, folder, sweep, RunSummary.of(trials), read_forgetting(folder, trials), paths.read_notes())


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several runs; runs of one name are told apart by their folders' names.

    Raises:
        InputError: if a folder is no run, or is given twice.
    """
    seen: set[Path] = set()
    for folder in folders:
        try:
            path = folder.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
            raise InputError(f"{folder}: cannot be read ({error}); give the folder of a run") from error
        if path in seen:
            raise InputError(f"{folder}: given twice; give each run once")
        seen.add(path)
    runs = [Run.read(folder) for folder in folders]
    names = [run.name for run in runs]
    runs = [replace(r, name=f"{r.name} ({r.folder.resolve().name})") if names.count(r.name) > 1 else r for r in runs]
    names = [run.name for run in runs]
    return [replace(r, name=f"{r.name} {i}") if names.count(r.name) > 1 else r for i, r in enumerate(runs, start=1)]


@dataclass(frozen=True)
class MethodRow:
    """A row of the leaderboard of methods.

    Attributes:
        place: 1 for the best; None where the model was not scored on the split that is compared, and for all rows of
            runs that are not comparable.
        runs: names of the runs it stands for: several only for a reference that is the same in all of them.
        label: the method, or what else the model is.
        trial: the model's scores.
        searched: candidates of the method in the search; 0 for a reference.
        merge_seconds: of a typical merge (median over the method's candidates); None where nothing was merged.
        tuning_seconds: wall time in which candidates of the method were being merged and scored; None for a reference.
        engine_seconds: in which engines computed for those candidates, times the devices of an engine.
        tokens: that engines read and wrote for them.
        judge_seconds: in which judges computed for them.
        judge_tokens: that judges read and wrote for them.
        forgetting: what was scored of what it may forget; None where it was not.
    """

    place: int | None
    runs: tuple[str, ...]
    label: str
    trial: Trial
    searched: int = 0
    merge_seconds: float | None = None
    tuning_seconds: float | None = None
    engine_seconds: float = 0.0
    tokens: int = 0
    judge_seconds: float = 0.0
    judge_tokens: int = 0
    forgetting: Forgetting | None = None

    @property
    def run(self) -> str:
        """The runs, as one text."""
        return ", ".join(self.runs)


def compare(runs: Sequence[Run]) -> list[MethodRow]:
    """The best candidate of each method in each run (chosen on validation), and the references; best first.

    Best by what the searches were after and had to keep, or, where that differs, by the normalised average.
    Scores are those of the test split where the model was scored there, else of validation. Only rows of one split
    have places: those of test if there are any. Where those were not scored on the same items, none has a place, and
    the rows of each run stand together.
    """
    rows = _merged_references([row for run in runs for row in _rows(run)])
    alike = same_aim(rows)
    rows.sort(key=lambda row: _order(row, alike))
    if not_comparable(rows):
        order = [run.name for run in runs]
        return sorted(rows, key=lambda row: order.index(row.runs[0]))
    placed = _ranked(rows)
    return [replace(row, place=placed.index(row) + 1 if row in placed else None) for row in rows]


def same_aim(rows: Sequence[MethodRow]) -> bool:
    """Whether all models were searched for, or are compared by, one objective and the same constraints."""
    return len({(row.trial.objective_name, *row.trial.constraints) for row in rows}) <= 1


def ranked_by(trial: Trial, alike: bool) -> ObjectiveValue:
    """What a row is ranked by: the normalised average where searches were after different things."""
    return trial.objective if alike else ObjectiveValue(trial.normalised_average, trial.normalised_standard_error)


def ranking_title(rows: Sequence[MethodRow]) -> str:
    """What the rows are ranked by, as axes and columns call it."""
    if not rows or not same_aim(rows):
        return objective_title(DEFAULT, ())
    return objective_title(rows[0].trial.objective_name, {domain for row in rows for domain in row.trial.domains})


def not_comparable(rows: Sequence[MethodRow]) -> str | None:
    """What to say where the rows that would have places were scored on different items or metrics; None otherwise."""
    return NOT_COMPARABLE if len({row.trial.items_digest for row in _ranked(rows)}) > 1 else None


def reservations(runs: Sequence[Run], rows: Sequence[MethodRow]) -> list[str]:
    """What must be known before numbers of these runs are compared, in sentences.

    Args:
        runs: the runs.
        rows: what `compare` made of them.
    """
    warnings = []
    splits = {row.trial.split for row in rows}
    if not_comparable(rows):
        warnings.append(f"These runs are {NOT_COMPARABLE}. No row has a place; each run's rows stand together.")
    elif any(len({row.trial.items_digest for row in rows if row.trial.split == split}) > 1 for split in splits):
        warnings.append("Rows without a place were not all scored on the same items and metrics.")
    if not same_aim(rows):
        warnings.append(
            "The runs searched for different things: their rows are in the order of the normalised average."
        )
    if len(splits) > 1:
        warnings.append("Some rows were scored on validation only, by which they were chosen: those flatter.")
    yardsticks = {
        frozenset((t.name, t.digest) for t in run.summary.trials if t.role == "specialist" and t.split in splits)
        for run in runs
    }
    if len(yardsticks) > 1:
        warnings.append("The runs are normalised by different specialists.")
    return warnings


def wall_seconds(trials: Sequence[Trial]) -> float:
    """Time in which at least one of the trials was under way: pauses of a search that was resumed do not count."""
    total, reached = 0.0, None
    for started, finished in sorted((trial.started, trial.finished) for trial in trials):
        begin: datetime = started if reached is None else max(started, reached)
        total += max(0.0, (finished - begin).total_seconds())
        reached = finished if reached is None else max(reached, finished)
    return total


def _rows(run: Run) -> list[MethodRow]:
    summary = run.summary
    rows = []
    for best in best_of_each_method(summary.trials):
        method = best.method or best.name
        tried = [trial for trial in summary.tried if trial.method == best.method]
        digests = {trial.digest for trial in tried}
        merges = [t.merge_seconds for t in summary.trials if t.digest in digests and t.merge_seconds > 0]
        devices = run.sweep.engine.tensor_parallel_size if run.sweep else 1
        rows.append(
            MethodRow(
                None,
                (run.name,),
                method,
                on_split(summary.trials, best, "test") or best,
                searched=len(tried),
                merge_seconds=statistics.median(merges) if merges else None,
                tuning_seconds=wall_seconds(tried),
                engine_seconds=sum(trial.engine_seconds for trial in tried) * devices,
                tokens=sum(trial.tokens for trial in tried),
                judge_seconds=sum(trial.judge_seconds for trial in tried),
                judge_tokens=sum(trial.judge_tokens for trial in tried),
                forgetting=run.forgetting.get(method),
            )
        )
    for reference in summary.references:
        trial = on_split(summary.trials, reference, "test") or reference
        rows.append(_reference_row(run, trial))
    known = {(trial.role, trial.name) for trial in summary.references}
    only_on_test = [t for t in summary.trials if t.split == "test" and (t.role, t.name) not in known]
    rows += [_reference_row(run, trial) for trial in only_on_test if trial.role in COMPARED_WITH]
    return rows


def _reference_row(run: Run, trial: Trial) -> MethodRow:
    merge_seconds = trial.merge_seconds or None
    return MethodRow(
        None,
        (run.name,),
        describe(trial),
        trial,
        merge_seconds=merge_seconds,
        forgetting=run.forgetting.get(trial.name),
    )


def _merged_references(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """One row for a reference that several runs share, scores included."""
    kept: list[MethodRow] = []
    for row in rows:
        same = next((index for index, other in enumerate(kept) if _same_reference(row, other)), None)
        if same is None:
            kept.append(row)
        else:
            kept[same] = replace(kept[same], runs=(*kept[same].runs, *row.runs))
    return kept


def _ranked(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """The rows that a ranking is about: those whose value is known, on test if there are any."""
    split = "test" if any(row.trial.split == "test" for row in rows) else "validation"
    alike = same_aim(rows)
    return [row for row in rows if row.trial.split == split and is_known(ranked_by(row.trial, alike).value)]


def _same_reference(first: MethodRow, second: MethodRow) -> bool:
    one, other = first.trial, second.trial
    names = ("role", "name", "split", "digest", "items_digest", "domains", "normalised_average", "objectives")
    return (
        one.role != "candidate"
        and first.forgetting == second.forgetting
        and all(getattr(one, name) == getattr(other, name) for name in names)
    )


def _order(row: MethodRow, alike: bool) -> tuple[bool, bool, tuple[float, ...]]:
    value = ranked_by(row.trial, alike).value
    if not is_known(value):
        return row.trial.split != "test", True, ()
    return row.trial.split != "test", False, best_first(row.trial)[:2] if alike else (-(value or 0.0),)
