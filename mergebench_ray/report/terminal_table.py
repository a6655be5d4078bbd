"""The leaderboard of methods on a terminal: what is most looked for; the page has the rest."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mergebench_ray.markup import terminal_text
from mergebench_ray.report.method_table import method_label
from mergebench_ray.runs.comparison import MethodRow, not_comparable, ranked_by, ranking_title, same_aim
from mergebench_ray.runs.leaderboard import MISSING, with_error


def terminal_table(rows: Sequence[MethodRow]) -> Table:
    """Place, method, run, split and value of each row, narrow enough for 80 columns."""
    title, alike = ranking_title(rows), same_aim(rows)
    caption = "± one standard error; 1.000 is what the specialists reach together"
    if reason := not_comparable(rows):
        caption = f"{reason}, so no row has a place"
    table = Table(caption=terminal_text(caption), caption_justify="left")
    for name in ("place", "method", "run", "split", title):
        table.add_column(terminal_text(name), justify="right" if name in ("place", title) else "left", overflow="fold")
    for row in rows:
        found = ranked_by(row.trial, alike)
        value = with_error(found.value, found.standard_error)
        cells = (str(row.place or MISSING), method_label(row), row.run, row.trial.split, value)
        table.add_row(*map(terminal_text, cells), style="bold" if row.place == 1 else None)
    return table
