"""A run as its folder shows it, for notebooks and programs: running or over, begun here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergebench_ray.config import Sweep
from mergebench_ray.config.fields import SPLITS, Split
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.runs.columns import table_of
from mergebench_ray.runs.items import read_items, read_questions
from mergebench_ray.runs.leaderboard import best_candidate, by_choice, front, on_split
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.status import RunStatus, run_status
from mergebench_ray.runs.trials import Trial, read_trials

if TYPE_CHECKING:  # each takes a while to import
    import pandas as pd
    import plotly.graph_objects as go

    from mergebench_ray.runs.comparison import Run

_SCORES = {"normalised_average": "float64", "normalised_standard_error": "float64"}
_TYPES = {"role": "str", "name": "str", "number": "int64", "split": "str", "method": "str", **_SCORES}
_ITEM = ["domain", "task", "item", "prompt_digest"]
_ITEM_COLUMNS = ["domain", "task", "item", "prompt", "expected", "answer", "score"]


def open_run(folder: Path | str) -> OpenedRun:
    """Open a run to look at it; nothing is started, and a search that is under way is not disturbed.

    Nothing is written but by `report`, which makes the page in the folder where that is missing or old.

    Args:
        folder: the run's.

    Raises:
        InputError: no run is there, or it is damaged.
    """
    run_status(folder)
    return OpenedRun(folder)


class OpenedRun:
    """A run as its folder shows it. Everything is read when it is asked for, so of a running search it is always new.

    Whatever is asked raises an InputError in one line where a file of the run is damaged.

    Args:
        folder: the run's.

    Attributes:
        folder: the same, absolute, so that it is found when the process works in another folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self._paths = RunFolder(Path(folder).absolute())
        self.folder = self._paths.path
        self._rows: list[Trial] = []
        self._seen: tuple[int, int, int] | None = None

    @property
    def status(self) -> RunStatus:
        """How it is getting on."""
        return run_status(self._from_here())

    @property
    def sweep(self) -> Sweep:
        """What is searched."""
        return Sweep.from_yaml(self._paths.sweep_file)

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each scored model and split, with the columns of trials.parquet but `record`; empty at first."""
        import pandas as pd

        rows = [trial.flat() for trial in self._trials()]
        if not rows:
            return pd.DataFrame(columns=list(_TYPES)).astype(_TYPES)
        # While nothing is normalised yet, the table does not know that these are numbers.
        return table_of(rows).drop_columns("record").to_pandas().astype(_SCORES)

    @property
    def best(self) -> Trial | None:
        """The best candidate so far, as it was scored on validation; None before there is one."""
        return best_candidate(self._trials())

    @property
    def front(self) -> list[Trial]:
        """Candidates of which no other is better in everything on validation, in the order of the sweep's choice.

        With one objective the best there alone.
        """
        return by_choice(front(self._trials()))

    @property
    def model(self) -> Path | None:
        """The folder of the best model, which transformers and vLLM load; None before it is written."""
        return self._paths.model_folder if self._paths.model_folder.is_dir() else None

    @property
    def report(self) -> Path:
        """The report's page, in the run's folder; written where it is missing, or older than the trials.

        Raises:
            InputError: no model has been scored yet, or the page cannot be written.
        """
        from mergebench_ray.report.pages import write_report

        page, trials = self._paths.report_file, self._paths.trials_file
        is_new = page.is_file() and (not trials.is_file() or page.stat().st_mtime_ns >= trials.stat().st_mtime_ns)
        return page if is_new else write_report(self.folder)

    @property
    def log(self) -> str:
        """What libraries said while the run was worked on, and tracebacks."""
        try:
            return self._paths.log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def items(self, model: Trial | str | None = None, split: Split | None = None) -> pd.DataFrame:
        """What a model was asked, what it answered, and the score of each answer.

        Args:
            model: a trial, or its label, such as "ties #3", "base" or "math"; None for the best.
            split: "validation", "final" or "test"; None for the trial's, or the last that the model was scored on.

        Returns:
            a row an item: domain, task, item, prompt, expected (of tasks that name an answer), answer, score, and
            perhaps judgement and cluster (items of one are not independent).

        Raises:
            InputError: no such model, or the run did not keep its items.
        """
        trial = self._asked_for(model, split)
        try:
            found = read_items(self.folder, trial).to_pandas()
        except FileNotFoundError:
            raise InputError(
                f"{self.folder}: the items of {trial.label} on {trial.split} are not there"
                f"{'; the race stopped it' if trial.role == 'stopped' else ''}"
            ) from None
        questions = read_questions(self.folder, trial.split)
        if questions is not None:
            found = found.merge(questions.to_pandas(), how="left", on=_ITEM)
        known = [name for name in _ITEM_COLUMNS if name in found]
        return found[known + [name for name in found if name not in (*known, "prompt_digest")]]

    def plot(self, name: str = "search") -> go.Figure:
        """One of the report's charts.

        Args:
            name: "search" (candidates in their order), "leaderboard", "methods", "domains", "parameters", "race",
                "front", "tradeoff", "pairs" or "time".

        Raises:
            InputError: there is none of that name, or nothing for it to show.
        """
        from mergebench_ray.report.figures import figure_of

        return figure_of(self._read(), name)

    def __repr__(self) -> str:
        return "\n".join([*self._lines(), f"folder: {self._from_here()}"])

    def _repr_html_(self) -> str:
        from mergebench_ray.report.run_table import run_table
        from mergebench_ray.runs.summary import RunSummary

        first, *others = self._lines()
        below = "; ".join([*others, f"folder: {self._from_here()}"])
        return str(run_table(RunSummary.of(self._trials()), first, below))

    def _from_here(self) -> Path:
        """The folder as people read it: short where it lies below the one that the process works in."""
        here = Path.cwd()
        return self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder

    def _lines(self) -> list[str]:
        """What it is, in lines for people."""
        return self.status.lines()

    def _trials(self) -> list[Trial]:
        """The rows, read again where their file is another one since."""
        try:
            found = self._paths.trials_file.stat()
        except FileNotFoundError:
            return []
        seen = found.st_ino, found.st_size, found.st_mtime_ns
        if seen != self._seen:
            self._rows, self._seen = read_trials(self.folder), seen
        return self._rows

    def _read(self) -> Run:
        from mergebench_ray.runs.comparison import Run

        return Run.read(self.folder)

    def _asked_for(self, model: Trial | str | None, split: Split | None) -> Trial:
        """The row of a model on a split."""
        trials = self._trials()
        if model is None:
            found = [one for one in [best_candidate(trials)] if one is not None]
        elif isinstance(model, Trial):
            found = [one for one in trials if one.key == model.key]
            split = split or model.split
        else:
            found = [one for one in trials if one.label == model]
        if not found:
            labels = dict.fromkeys(one.label for one in trials)
            what = "no candidate has been scored" if model is None else f"no model {model!r:.80}"
            raise InputError(f"{self.folder}: {what}; {nearest(str(model), labels)}")
        for one in [split] if split else reversed(SPLITS):
            if (row := on_split(trials, found[0], one)) is not None:
                return row
        raise InputError(f"{self.folder}: {found[0].label} was not scored on {split!r:.80}; leave the split out")
