"""Sections that compare methods, of one run or of several: the table, cost, shape, forgetting and items."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mergebench_ray.report.item_browser import item_browser_html
from mergebench_ray.report.items import questions_of, scored_models
from mergebench_ray.report.method_charts import cost_charts, cost_names, radar_charts
from mergebench_ray.report.method_table import forgetting_html, methods_html
from mergebench_ray.report.page import NOTHING, Charts, Section, figures_html, render
from mergebench_ray.runs.comparison import MethodRow, Run, reservations

TABLE_HINT = (
    "The best candidate of each method, chosen on validation, and the references; the column split says which items "
    "a row's numbers are of. Under a domain stands what was counted in it. Merge: a typical one. Tuning: all "
    "candidates of the method: wall time, time in which engines computed (times the devices of an engine: on GPUs "
    "these are GPU-seconds), tokens read and written; a model that was scored before cost nothing again."
)


def methods_table(runs: Sequence[Run], rows: Sequence[MethodRow]) -> Markup:
    """The leaderboard of methods with what must be known to read it."""
    if not rows:
        return NOTHING
    return render("leaderboard.html", hint=TABLE_HINT, warnings=reservations(runs, rows), table=methods_html(rows))


def method_sections(
    runs: Sequence[Run], rows: Sequence[MethodRow], colours: dict[str, str], drawn: Charts
) -> list[Section]:
    """Cost against quality, a radar per method, and what was forgotten; parts without data are left out."""
    sections = [
        Section(
            "Cost against quality",
            "The best of each method: what its search cost, left to right, and what it reached, upwards. High on the "
            "left is best. A method with more candidates costs more: point at a mark to see how many it had.",
            _costs(rows, colours, drawn),
        ),
        Section(
            "Shape of each method",
            "The best of each method over the domains: score / specialist's score. The outer ring at 1 is every "
            "specialist at once, the dotted line is the base.",
            _radars(rows, runs, colours, drawn),
        ),
        Section(
            "Forgetting",
            "Scores of tasks that no specialist was trained for. Retained: score / the base's score, averaged over the "
            "tasks; below 1, something was forgotten.",
            forgetting_html(rows),
        ),
    ]
    return [section for section in sections if section.content]


def items_section(runs: Sequence[Run]) -> list[Section]:
    """The item browser; none where no items are on disk."""
    models, missing = scored_models(runs)
    hint = (
        "What each model answered, and how two of them differ on the same items. A paired difference has a smaller "
        "error than two scores side by side: items that are hard for both cancel out. Bold: more than two errors."
    )
    content = item_browser_html(models, questions_of(runs), missing)
    return [Section("Items", hint, content)] if content else []


def _costs(rows: Sequence[MethodRow], colours: dict[str, str], drawn: Charts) -> Markup:
    figures = [("", drawn.html(figure)) for figure in cost_charts(rows, colours)]
    return figures_html(figures, "pair", cost_names(rows, colours))


def _radars(rows: Sequence[MethodRow], runs: Sequence[Run], colours: dict[str, str], drawn: Charts) -> Markup:
    return figures_html([(title, drawn.html(figure)) for title, figure in radar_charts(rows, runs, colours)], "grid")
