"""The report's page: one HTML file that needs nothing else, on a wide screen, a phone or paper.

What is text is escaped by the templates; only what they made, and charts, are markup.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mergebench_ray.report.own_output import HTML_MARK

CHART_CONFIG = {"responsive": True, "displaylogo": False, "displayModeBar": False, "showSendToCloud": False}
NOTHING = Markup()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: what it shows.
        hint: one line that says how to read it.
        content: its markup.
    """

    title: str
    hint: str
    content: Markup


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, and what its column is sorted by (None: what is shown, or nothing for a dash)."""

    text: str
    value: float | str | None = None


@dataclass
class Charts:
    """Turns figures into HTML with ids that are the same whenever the same report is made."""

    count: int = field(default=0)

    def html(self, figure: go.Figure) -> Markup:
        """The figure as HTML, without plotly.js, which the page holds once."""
        self.count += 1
        markup = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=f"chart-{self.count}",
            config=CHART_CONFIG,
            default_width="100%",
        )
        return Markup(markup)


def render(template: str, **values: Any) -> Markup:
    """Fill in one of the report's templates."""
    return Markup(_environment().get_template(template).render(**values))


def table_html(
    columns: Sequence[tuple[str, bool]], rows: Sequence[tuple[Sequence[Cell], bool]], *, compact: bool = False
) -> Markup:
    """A table that sorts by a click on a header.

    Args:
        columns: (name, is text); a second line of a name is shown small under it.
        rows: (cells, is the best).
        compact: whether errors stand under their numbers, so that many columns fit on a screen.
    """
    return render("table.html", columns=columns, rows=rows, compact=compact, left=Markup(' class="text"'))


def figures_html(
    figures: Sequence[tuple[str, Markup]], layout: str, key: Sequence[tuple[str, str, str]] = ()
) -> Markup:
    """Charts side by side; nothing where there are none.

    Args:
        figures: title, which may be empty, and chart.
        layout: class of what they stand in.
        key: what colours mean: mark (empty for a dot), colour, name.
    """
    return render("figures.html", figures=figures, layout=layout, key=key) if figures else NOTHING


def page_html(
    title: str,
    finding: str,
    facts: Sequence[tuple[str, Any]],
    sections: Sequence[Section],
    *,
    scores: bool = True,
    live: str | None = None,
) -> str:
    """The whole page, plotly.js included, with what scores mean where it has any.

    A page that is served has its version in `live`, and looks for a newer one.
    """
    return render(
        "page.html",
        mark=Markup(HTML_MARK),
        title=title,
        finding=finding,
        facts=facts,
        sections=sections,
        scores=scores,
        live=live,
        plotly=Markup(get_plotlyjs()),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mergebench_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = _asset
    return environment


def _asset(name: str) -> Markup:
    """A script or style sheet of ours."""
    return Markup(resources.files("mergebench_ray.report").joinpath("templates", name).read_text(encoding="utf-8"))
