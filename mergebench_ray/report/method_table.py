"""The leaderboard of methods as a table: on the page, as CSV, as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from mergebench_ray.config.objective import DEFAULT
from mergebench_ray.markup import csv_text, latex_text, markdown_table, markdown_text
from mergebench_ray.report.own_output import CSV_MARK, LATEX_MARK, NOT_COMPARABLE_MARK
from mergebench_ray.report.page import NOTHING, Cell, table_html
from mergebench_ray.runs.comparison import MethodRow, not_comparable, ranking_title, same_aim
from mergebench_ray.runs.leaderboard import (
    MISSING,
    domain_metric,
    what_is_missed,
    with_error,
    with_objective,
)
from mergebench_ray.scores import DomainScore

NOT_RECORDED = "metric not recorded"
TEXT_COLUMNS = ("method", "run", "split")


def method_domains(rows: Sequence[MethodRow]) -> list[str]:
    """All domains of the rows, sorted."""
    return sorted({domain for row in rows for domain in row.trial.domains})


def method_headings(rows: Sequence[MethodRow]) -> list[tuple[str, str]]:
    """Heading and, under it, what is measured: of a domain its metric, where all rows agree on it."""
    several = len({name for row in rows for name in row.runs}) > 1
    names = [("place", ""), ("method", ""), *([("run", "")] if several else []), ("split", "")]
    names += [(ranking_title(rows), "")] if _has_own_aim(rows) else []
    names.append(("normalised average", "1 = specialists"))
    trials = [row.trial for row in rows]
    names += [(domain, domain_metric(trials, domain) or "") for domain in method_domains(rows)]
    if any(row.forgetting for row in rows):
        names.append(("retained", "1 = base"))
    names += [("merge", "seconds"), ("tuning", "seconds"), ("tuning", "engine-seconds"), ("tuning", "tokens")]
    return [*names, ("tuning", "judge-seconds"), ("tuning", "judge tokens")] if _judged(rows) else names


def method_cells(rows: Sequence[MethodRow]) -> list[list[Cell]]:
    """A line per row, in the order of `method_headings`; numbers with their standard errors."""
    several = len({name for row in rows for name in row.runs}) > 1
    forgetting = any(row.forgetting for row in rows)
    domains = method_domains(rows)
    trials = [row.trial for row in rows]
    mixed = {domain for domain in domains if domain_metric(trials, domain) is None}
    lines = []
    for row in rows:
        trial = row.trial
        cells = [Cell(str(row.place or MISSING), row.place), Cell(method_label(row), method_label(row))]
        cells += [Cell(row.run, row.run)] if several else []
        cells.append(Cell(trial.split, trial.split))
        cells += [Cell(with_objective(trial), trial.objective.value)] if _has_own_aim(rows) else []
        average = with_error(trial.normalised_average, trial.normalised_standard_error)
        cells.append(Cell(average, trial.normalised_average))
        cells += [_score_cell(trial.domains.get(domain), domain in mixed) for domain in domains]
        if forgetting:
            kept = row.forgetting
            text = with_error(kept.retained, kept.retained_error) if kept else MISSING
            cells.append(Cell(text, kept.retained if kept else None))
        lines.append([*cells, *_cost_cells(row, judged=_judged(rows))])
    return lines


def method_label(row: MethodRow) -> str:
    """The method and which of its candidates it was, for a reference, what it is; and the constraints it misses."""
    label = f"{row.label} #{row.trial.number}" if row.searched else row.label
    return f"{label} ({what_is_missed(row.trial)})" if row.trial.missed else label


def methods_html(rows: Sequence[MethodRow]) -> Markup:
    """The table for the page."""
    headings = method_headings(rows)
    columns = [("\n".join(part for part in heading if part), heading[0] in TEXT_COLUMNS) for heading in headings]
    lines = [(cells, row.place == 1) for row, cells in zip(rows, method_cells(rows))]
    return table_html(columns, lines, compact=True)


def methods_csv(rows: Sequence[MethodRow]) -> str:
    """A line per row, every number in a column of its own, unrounded; empty where there is none.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    domains, tasks, reason = method_domains(rows), _forgetting_tasks(rows), not_comparable(rows)
    lines: list[dict[str, Any]] = []
    for row in rows:
        trial, kept = row.trial, row.forgetting
        line: dict[str, Any] = {"place": row.place, "method": row.label, "candidate": _candidate(row), "run": row.run}
        line |= {"split": trial.split, "normalised_average": trial.normalised_average}
        line["normalised_standard_error"] = trial.normalised_standard_error
        line["comparable"] = reason or "yes"
        line |= {"objective": trial.objective_name, "objective_value": trial.objective.value}
        line |= {"objective_standard_error": trial.objective.standard_error, "misses": ", ".join(trial.missed)}
        for domain in domains:
            line |= _result_columns(domain, trial.domains.get(domain))
        line["retained"] = kept.retained if kept else None
        line["retained_standard_error"] = kept.retained_error if kept else None
        line["forgetting_split"] = kept.split if kept else None
        for task in tasks:
            line |= _result_columns(task, kept.results.get(task) if kept else None)
        line |= {"merge_seconds": row.merge_seconds, "tuning_seconds": row.tuning_seconds}
        searched = bool(row.searched)
        line["tuning_engine_seconds"] = row.engine_seconds if searched else None
        line["tuning_tokens"] = row.tokens if searched else None
        line["tuning_judge_seconds"] = row.judge_seconds if searched else None
        line["tuning_judge_tokens"] = row.judge_tokens if searched else None
        lines.append(line | {"candidates": row.searched, "digest": trial.digest})
    safe = [
        {csv_text(name): csv_text(value) if isinstance(value, str) else value for name, value in line.items()}
        for line in lines
    ]
    # Of objects, or a column of whole numbers with a gap would become one of broken numbers.
    frame = pd.DataFrame(safe, columns=None if safe else CSV_MARK.split(","), dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def methods_markdown(rows: Sequence[MethodRow]) -> str:
    """A Markdown table; ± is one standard error."""
    headings = method_headings(rows)
    header = [f"{name} ({unit})" if unit else name for name, unit in headings]
    lines = [[markdown_text(cell.text) for cell in line] for line in method_cells(rows)]
    table = markdown_table([*map(markdown_text, header)], lines, [name in TEXT_COLUMNS for name, _ in headings])
    reason = not_comparable(rows)
    said = f"{NOT_COMPARABLE_MARK}{reason}\n\n" if reason else ""
    return f"{said}{table}\n"


def methods_latex(rows: Sequence[MethodRow]) -> str:
    """A LaTeX table for the package booktabs; ± is one standard error."""
    headings = method_headings(rows)
    columns = "".join("l" if name in TEXT_COLUMNS else "r" for name, _ in headings)
    lines = []
    for row, cells in zip(rows, method_cells(rows)):
        texts = [latex_text(cell.text) for cell in cells]
        lines.append([f"\\textbf{{{text}}}" if row.place == 1 and text else text for text in texts])
    names = [(latex_text(name), f"{{\\scriptsize {latex_text(unit)}}}" if unit else "") for name, unit in headings]
    frame = pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(names), dtype=object)
    with pd.option_context("styler.sparse.columns", False):
        table = str(frame.style.hide(axis="index").to_latex(hrules=True, column_format=columns))
    if reason := not_comparable(rows):
        said = f"\\multicolumn{{{len(headings)}}}{{l}}{{\\textbf{{{latex_text(reason)}}}}} \\\\"
        table = table.replace("\\midrule\n", f"\\midrule\n{said}\n\\midrule\n", 1)
    return f"{LATEX_MARK}; needs \\usepackage{{booktabs}}; after each number one standard error\n{table}"


def forgetting_html(rows: Sequence[MethodRow]) -> Markup:
    """Models × tasks of the forgetting section; empty where nothing of it was scored."""
    scored = [(row, row.forgetting) for row in rows if row.forgetting is not None]
    if not scored:
        return NOTHING
    tasks = _forgetting_tasks(rows)
    metrics = {task: {kept.results[task].metric for _, kept in scored if task in kept.results} for task in tasks}
    columns = [("method", True), ("run", True), ("split", True), ("retained\n1 = base", False)]
    columns += [(f"{task}\n{', '.join(sorted(metrics[task] - {''}))}".strip(), False) for task in tasks]
    lines = []
    for row, kept in scored:
        cells = [Cell(text, text) for text in (method_label(row), row.run, kept.split)]
        cells.append(Cell(with_error(kept.retained, kept.retained_error), kept.retained))
        lines.append(([*cells, *(_score_cell(kept.results.get(task), False) for task in tasks)], False))
    return table_html(columns, lines, compact=True)


def _forgetting_tasks(rows: Sequence[MethodRow]) -> list[str]:
    return sorted({task for row in rows if row.forgetting for task in row.forgetting.results})


def _score_cell(result: DomainScore | None, name_metric: bool) -> Cell:
    if result is None:
        return Cell(MISSING)
    text = with_error(result.score, result.standard_error)
    return Cell(f"{text} ({result.metric or NOT_RECORDED})" if name_metric else text, result.score)


def _has_own_aim(rows: Sequence[MethodRow]) -> bool:
    """Whether all rows were searched for one thing that is not the normalised average, which has a column anyway."""
    return same_aim(rows) and any(row.trial.objective_name != DEFAULT for row in rows)


def _judged(rows: Sequence[MethodRow]) -> bool:
    return any(row.judge_seconds for row in rows)


def _cost_cells(row: MethodRow, *, judged: bool) -> list[Cell]:
    merge = Cell(MISSING if row.merge_seconds is None else f"{row.merge_seconds:.2f}", row.merge_seconds)
    costs = [row.tuning_seconds, row.engine_seconds, row.tokens]
    costs += [row.judge_seconds, row.judge_tokens] if judged else []
    if row.tuning_seconds is None:
        return [merge, *(Cell(MISSING) for _ in costs)]
    return [merge, *(Cell(f"{cost:,.0f}", cost) for cost in costs)]


def _candidate(row: MethodRow) -> int | None:
    return row.trial.number if row.searched else None


def _result_columns(name: str, result: DomainScore | None) -> dict[str, Any]:
    if result is None:
        return dict.fromkeys((f"{name}.score", f"{name}.standard_error", f"{name}.items", f"{name}.metric"))
    return {
        f"{name}.score": result.score,
        f"{name}.standard_error": result.standard_error,
        f"{name}.items": result.items,
        f"{name}.metric": result.metric,
    }
