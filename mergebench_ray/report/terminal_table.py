"""The leaderboard of methods on a terminal: what is most looked for; the page has the rest."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mergebench_ray.markup import terminal_text
from mergebench_ray.report.method_table import method_label
from mergebench_ray.runs.comparison import MethodRow, not_comparable
from mergebench_ray.runs.leaderboard import MISSING, with_error


def terminal_table(rows: Sequence[MethodRow]) -> Table:
    """Place, method, run, split and normalised average of each row, narrow enough for 80 columns."""
    caption = "± one standard error; 1.000 is what the specialists reach together"
    if reason := not_comparable(rows):
        caption = f"{reason}, so no row has a place"
    table = Table(caption=terminal_text(caption), caption_justify="left")
    for name in ("place", "method", "run", "split", "normalised average"):
        table.add_column(name, justify="right" if name in ("place", "normalised average") else "left", overflow="fold")
    for row in rows:
        average = with_error(row.trial.normalised_average, row.trial.normalised_standard_error)
        cells = (str(row.place or MISSING), method_label(row), row.run, row.trial.split, average)
        table.add_row(*map(terminal_text, cells), style="bold" if row.place == 1 else None)
    return table
