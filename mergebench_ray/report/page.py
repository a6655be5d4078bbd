"""The report's page: one HTML file that needs nothing else, on a wide screen, a phone or paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mergebench_ray.report.own_output import HTML_MARK

STYLE = """
:root { color-scheme: light; --ink: #22272e; --soft: #57606a; --line: #d8dee4; --paper: #ffffff; --ground: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { margin: 0 0 4px; font-size: 1.9rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 1.25rem; }
p { margin: 0 0 12px; }
.hint { color: var(--soft); max-width: 115ch; }
.finding { font-size: 1.15rem; max-width: 90ch; border-left: 4px solid #0b3d66;
  padding: 4px 0 4px 14px; margin: 14px 0; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px; margin-top: 18px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 12px 0 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 8px 16px; }
.grid > * { min-width: 0; }
.key span { display: inline-block; margin-right: 18px; }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px; }
figure { margin: 0; text-align: center; }
figcaption { font-weight: 600; font-size: 0.9rem; overflow-wrap: anywhere; margin-top: 10px; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 8px 16px; }
.pair > * { min-width: 0; }
.scroll { overflow-x: auto; }
.wide { min-width: 620px; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--ground); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
td small { display: block; color: var(--soft); font-weight: 400; }
th small { display: block; font-weight: 400; color: var(--soft); white-space: normal; min-width: 7em; }
th { vertical-align: bottom; }
.compact th, .compact td { padding: 4px 7px; }
.compact th, .compact td.text { white-space: normal; }
.compact th small { min-width: 0; }
th.text, td.text { text-align: left; }
tr.best td { font-weight: 700; background: #eef5fb; }
code { font-size: 0.9em; }
.warning { border-left: 4px solid #b35900; padding: 2px 0 2px 12px; margin: 6px 0; }
.choices { display: flex; flex-wrap: wrap; gap: 8px 16px; margin-bottom: 12px; }
.choices label { display: grid; color: var(--soft); font-size: 0.86rem; min-width: 0; }
.choices select, .choices input { font: inherit; color: var(--ink); padding: 5px 8px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--paper); max-width: min(22rem, 86vw); }
.paired { font-weight: 600; }
#paired-table { width: auto; margin-bottom: 14px; }
#paired-table .beyond { font-weight: 700; }
#item-table { table-layout: fixed; }
#item-table th:first-child { width: 28%; }
#item-table td { white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
#item-table td:first-child code { display: block; color: var(--soft); }
#item-table pre { margin: 4px 0 0; white-space: pre-wrap; max-height: 14em; overflow: auto; font-size: 0.82rem; }
.score { border-radius: 4px; padding: 0 6px; background: var(--ground); }
.score.right { background: #d9efe2; }
.score.wrong { background: #f6dede; }
.score.partly { background: #f7edd0; }
.soft { color: var(--soft); }
.pager button { font: inherit; padding: 3px 12px; }
@media (max-width: 600px) {
  main { padding: 14px 8px 32px; }
  section { padding: 12px 10px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
  #item-table thead { display: none; }
  #item-table, #item-table tbody, #item-table tr, #item-table td { display: block; }
  #item-table td { padding: 4px 2px; border: 0; }
  #item-table td[data-title]::before { content: "model " attr(data-title) " "; color: var(--soft); }
  #item-table tr { border-bottom: 1px solid var(--line); padding: 6px 0; }
}
"""

SORTING = """
document.querySelectorAll("table.sortable th button").forEach((button) => button.addEventListener("click", () => {
  const header = button.parentElement, body = header.closest("table").tBodies[0];
  const column = header.cellIndex, down = header.getAttribute("aria-sort") === "ascending";
  header.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value;
  [...body.rows].sort((a, b) => {
    if ((value(a) === "") !== (value(b) === "")) return value(a) === "" ? 1 : -1;
    const order = header.classList.contains("text")
      ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
    return down ? -order : order;
  }).forEach((row) => body.append(row));
}));
"""

CHART_CONFIG = {"responsive": True, "displaylogo": False, "displayModeBar": False, "showSendToCloud": False}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: what it shows.
        hint: one line that says how to read it.
        content: HTML.
    """

    title: str
    hint: str
    content: str


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, and what its column is sorted by (None: what is shown, or nothing for a dash)."""

    text: str
    value: float | str | None = None


@dataclass
class Charts:
    """Turns figures into HTML with ids that are the same whenever the same report is made."""

    count: int = field(default=0)

    def html(self, figure: go.Figure) -> str:
        """The figure as HTML, without plotly.js, which the page holds once."""
        self.count += 1
        markup: str = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=f"chart-{self.count}",
            config=CHART_CONFIG,
            default_width="100%",
        )
        return markup


def table_html(
    columns: Sequence[tuple[str, bool]], rows: Sequence[tuple[Sequence[Cell], bool]], *, compact: bool = False
) -> str:
    """A table that sorts by a click on a header.

    Args:
        columns: (name, is text); a second line of a name is shown small under it.
        rows: (cells, is the best).
        compact: whether errors stand under their numbers, so that many columns fit on a screen.
    """
    kinds = [' class="text"' if is_text else "" for _, is_text in columns]
    header = "".join(
        f'<th{kind}><button type="button">{_heading_html(name)}</button></th>'
        for (name, _), kind in zip(columns, kinds)
    )
    body = "".join(_row_html(cells, kinds, is_best, compact) for cells, is_best in rows)
    kind = "sortable compact" if compact else "sortable"
    table = f'<table class="{kind}"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _heading_html(name: str) -> str:
    first, _, second = name.partition("\n")
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")


def _row_html(cells: Sequence[Cell], kinds: Sequence[str], is_best: bool, compact: bool) -> str:
    row = '<tr class="best">' if is_best else "<tr>"
    for cell, kind in zip(cells, kinds):
        value = "" if cell.value is None else escape(str(cell.value))
        number, plus_minus, error = cell.text.partition(" ± ") if compact else (cell.text, "", "")
        under = f"<small>± {escape(error)}</small>" if plus_minus else ""
        row += f'<td{kind} data-value="{value}">{escape(number)}{under}</td>'
    return row + "</tr>"


def facts_html(facts: Sequence[tuple[str, Any]]) -> str:
    """Names and values, one a line."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts) + "</dl>"


def page_html(title: str, finding: str, facts: Sequence[tuple[str, Any]], sections: Sequence[Section]) -> str:
    """The whole page, plotly.js included."""
    parts = "".join(
        f'<section><h2>{escape(section.title)}</h2><p class="hint">{escape(section.hint)}</p>'
        f"{section.content}</section>\n"
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{HTML_MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<p class="finding">{escape(finding)}</p>
<p class="hint">Normalised average: a model's score in each domain divided by the score of that domain's specialist,
averaged over the domains. 1.0 is as good as all specialists at once. Error bars and ± are one standard error.</p>
{facts_html(facts)}
</header>
{parts}
</main>
<script>{SORTING}</script>
</body>
</html>
"""
