"""The score by which a search went beside what fresh items say of the same candidates."""

from __future__ import annotations

from mergebench_ray.config.fields import SPLITS
from mergebench_ray.report.page import Cell, Section, table_html
from mergebench_ray.runs.leaderboard import MISSING, best_first, on_split, with_objective
from mergebench_ray.runs.summary import SPLIT_MEANING, RunSummary
from mergebench_ray.runs.trials import Trial, is_known

_HINT = (
    "The score by which a candidate came so far is too high: it was chosen for it, by chance among other things. What "
    "it scores on items that nothing was chosen by is what to expect of it."
)


def fresh_section(run: RunSummary) -> list[Section]:
    """Candidates that were scored on more than validation, with their scores on each split; none without any."""
    splits = [split for split in SPLITS if any(one.split == split for one in run.trials)]
    rows = []
    for trial in sorted(run.candidates, key=best_first):
        scored = [on_split(run.trials, trial, split) for split in splits]
        if any(one is not None and one is not trial for one in scored):
            cells = [Cell(trial.label), *map(_score_cell, scored)]
            rows.append((cells, trial is run.best))
    if not rows:
        return []
    columns = [("model", True), *((f"{run.objective_title}\n{SPLIT_MEANING[split]}", False) for split in splits)]
    return [Section("What the search saw, and what fresh items say", _HINT, table_html(columns, rows))]


def _score_cell(trial: Trial | None) -> Cell:
    if trial is None or not is_known(trial.objective.value):
        return Cell(MISSING)
    return Cell(with_objective(trial), trial.objective.value)
