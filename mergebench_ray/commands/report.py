"""The report of one or several runs, and the leaderboard as a file for papers and spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergebench_ray.errors import InputError
from mergebench_ray.report.method_table import methods_csv, methods_latex, methods_markdown
from mergebench_ray.report.own_output import check_outputs, write_output
from mergebench_ray.report.pages import comparison_page, run_page
from mergebench_ray.runs.comparison import MethodRow, Run, compare, read_runs
from mergebench_ray.runs.run_folder import RunFolder


def report(
    runs: Sequence[Path | str],
    *,
    out: Path | str | None = None,
    csv: Path | str | None = None,
    markdown: Path | str | None = None,
    latex: Path | str | None = None,
) -> dict[str, Path]:
    """Write the report of a run, or one that compares several.

    Args:
        runs: the runs' folders.
        out: file of the page; None for ``report.html``, in the run's folder if there is one run, else here.
        csv: file for the leaderboard of methods as CSV; None for none.
        markdown: the same as Markdown.
        latex: the same as LaTeX.

    Returns:
        what was written: kind -> path.

    Raises:
        InputError: if a folder is no run or given twice, a run is damaged, or a file cannot be written, or is there and
            is not as an earlier report wrote it.
    """
    if not runs:
        raise InputError("give the folder of at least one run")
    found = read_runs([Path(run) for run in runs])
    files = {"out": out, "csv": csv, "markdown": markdown, "latex": latex}
    return report_on(found, **{name: None if one is None else Path(one) for name, one in files.items()})[0]


def report_on(
    found: Sequence[Run],
    *,
    out: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    latex: Path | None = None,
) -> tuple[dict[str, Path], list[MethodRow]]:
    """Write the report of runs that were read.

    Returns:
        what was written, as `report` does; the leaderboard's rows.

    Raises:
        InputError: as `report`.
    """
    runs = [run.folder for run in found]
    page_file = out or RunFolder(runs[0] if len(runs) == 1 else Path()).report_file
    given = {"out": page_file, "csv": csv, "markdown": markdown, "latex": latex}
    paths = {option: path for option, path in given.items() if path is not None}
    check_outputs(paths, runs)
    rows = compare(found)
    page = run_page(found[0]) if len(found) == 1 else comparison_page(found)
    written = {"report": write_output(page_file, page, "out")}
    for name, export in (("csv", methods_csv), ("markdown", methods_markdown), ("latex", methods_latex)):
        if name in paths:
            written[name] = write_output(paths[name], export(rows), name)
    return written, rows
