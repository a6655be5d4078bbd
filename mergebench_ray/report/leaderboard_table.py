"""A run's leaderboard as a table: on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mergebench_ray.markup import markdown_text, terminal_text
from mergebench_ray.runs.leaderboard import MISSING, LeaderboardRow, domain_metric, with_error
from mergebench_ray.runs.trials import Trial


def leaderboard_cells(rows: Sequence[LeaderboardRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the leaderboard: place, model, normalised average, then a column per domain.

    Where it is known what was counted in a domain, the header says it on a second line.
    """
    domains = sorted({domain for row in rows for domain in row.trial.domains})
    cells = []
    for row in rows:
        trial = row.trial
        results = [trial.domains.get(domain) for domain in domains]
        average = with_error(trial.normalised_average, trial.normalised_standard_error)
        scores = [with_error(result.score, result.standard_error) if result else MISSING for result in results]
        cells.append([str(row.place or MISSING), row.label, average, *scores])
    names = [_with_metric(domain, [row.trial for row in rows]) for domain in domains]
    return ["place", "model", "normalised average", *names], cells


def leaderboard_markdown(rows: Sequence[LeaderboardRow]) -> str:
    """The leaderboard as a Markdown table, numbers with one standard error."""
    header, cells = leaderboard_cells(rows)
    alignment = ["---:", "---", *["---:"] * (len(header) - 2)]
    lines = [[markdown_text(name) for name in header], alignment, *[[markdown_text(c) for c in line] for line in cells]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def leaderboard_table(rows: Sequence[LeaderboardRow], title: str) -> Table:
    """The leaderboard for a terminal."""
    header, cells = leaderboard_cells(rows)
    table = Table(
        title=terminal_text(title), caption="± one standard error; 1.000 is what the specialists reach together"
    )
    for name in header:
        table.add_column(terminal_text(name), justify="left" if name == "model" else "right")
    for row, line in zip(rows, cells):
        table.add_row(*map(terminal_text, line), style="bold" if row.label.startswith("best: ") else None)
    return table


def _with_metric(domain: str, trials: Sequence[Trial]) -> str:
    metric = domain_metric(trials, domain)
    return f"{domain}\n({metric})" if metric else domain
