"""Charts that compare methods: their quality, what it cost, and the shape of each over the domains."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from mergebench_ray.report.method_table import method_domains, method_label
from mergebench_ray.report.styling import FAINT, GRID, INK, finite, hover, styled
from mergebench_ray.runs.comparison import MethodRow, Run, ranked_by, ranking_title, same_aim
from mergebench_ray.runs.leaderboard import with_error
from mergebench_ray.runs.trials import is_known

REFERENCE_COLOUR = "#5f6b76"
# Of plotly, and as text; a run each.
SYMBOLS = (("circle", "●"), ("diamond", "◆"), ("square", "■"), ("cross", "✚"), ("triangle-up", "▲"), ("star", "★"))
MAX_RADARS = 24


def methods_chart(rows: Sequence[MethodRow], colours: dict[str, str]) -> go.Figure | None:
    """What rows are ranked by with its error bar, a line per row, best on top."""
    alike = same_aim(rows)
    shown = [row for row in reversed(rows) if is_known(ranked_by(row.trial, alike).value)]
    if not shown:
        return None
    several = len({name for row in rows for name in row.runs}) > 1
    figure = go.Figure()
    for position, row in enumerate(shown):
        symbol = "circle" if row.trial.split == "test" else "diamond-open"
        found = ranked_by(row.trial, alike)
        error = {"array": [finite(found.standard_error)], "thickness": 1.5, "width": 4}
        figure.add_scatter(
            x=[found.value],
            y=[position],
            error_x=error,
            mode="markers",
            marker={"size": 11, "color": _colour(row, colours), "symbol": symbol},
            text=[hover(row.trial)],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    labels = [escape(method_label(row)) + (f"<br><i>{escape(_short(row.run))}</i>" if several else "") for row in shown]
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=labels, range=[-0.6, len(shown) - 0.4])
    figure.update_xaxes(title=escape(ranking_title(rows)), rangemode="tozero")
    figure.add_vline(x=1, line={"color": FAINT, "width": 1, "dash": "dash"})
    return styled(figure, height=110 + (44 if several else 34) * len(shown))


def cost_charts(rows: Sequence[MethodRow], colours: dict[str, str]) -> list[go.Figure]:
    """Quality against what the search of each method cost: seconds of engines, and tokens; a chart each."""
    searched = _with_cost(rows)
    if not any(row.engine_seconds or row.tokens for row in searched):
        return []
    seconds = [row.engine_seconds for row in searched]
    tokens = [float(row.tokens) for row in searched]
    return [
        _cost_chart(searched, seconds, "engine-seconds of the search", colours),
        _cost_chart(searched, tokens, "tokens of the search", colours),
    ]


def cost_names(rows: Sequence[MethodRow], colours: dict[str, str]) -> list[tuple[str, str, str]]:
    """What the marks of the cost charts mean: mark, colour and name, one for each method of each run."""
    searched = _with_cost(rows)
    runs = list(dict.fromkeys(row.run for row in searched))
    return [
        (
            SYMBOLS[runs.index(row.run) % len(SYMBOLS)][1],
            _colour(row, colours),
            method_label(row) if len(runs) == 1 else f"{method_label(row)}, {row.run}",
        )
        for row in searched
    ]


def _with_cost(rows: Sequence[MethodRow]) -> list[MethodRow]:
    alike = same_aim(rows)
    return [row for row in rows if row.searched and is_known(ranked_by(row.trial, alike).value)]


def _cost_chart(rows: Sequence[MethodRow], costs: Sequence[float], unit: str, colours: dict[str, str]) -> go.Figure:
    runs = list(dict.fromkeys(row.run for row in rows))
    figure, alike = go.Figure(), same_aim(rows)
    for row, cost in zip(rows, costs):
        found = ranked_by(row.trial, alike)
        symbol = SYMBOLS[runs.index(row.run) % len(SYMBOLS)][0]
        figure.add_scatter(
            x=[cost],
            y=[found.value],
            error_y={"array": [finite(found.standard_error)], "thickness": 1, "width": 3},
            mode="markers",
            cliponaxis=False,
            marker={"size": 11, "color": _colour(row, colours), "symbol": symbol},
            name=escape(method_label(row)),
            showlegend=False,
            hovertemplate=f"{hover(row.trial)}<br>{cost:,.0f} {unit}, {row.searched} candidates<extra></extra>",
        )
    figure.update_xaxes(title=unit, rangemode="tozero", nticks=6)
    figure.update_yaxes(title=escape(ranking_title(rows)))
    return styled(figure, height=360)


def radar_charts(
    rows: Sequence[MethodRow], runs: Sequence[Run], colours: dict[str, str]
) -> list[tuple[str, go.Figure]]:
    """A radar per method over the domains, each score as a share of the specialist's; the base's is drawn in grey.

    Args:
        rows: the leaderboard; its first `MAX_RADARS` methods are drawn.
        runs: the runs, each with its own specialists.
        colours: by method.

    Returns:
        title and figure of each.
    """
    domains = method_domains(rows)
    summaries = {run.name: run.summary for run in runs}

    def profile(row: MethodRow) -> list[float | None]:
        return [summaries[row.runs[0]].recovered(row.trial, domain) for domain in domains]

    drawn = [(row, profile(row)) for row in rows if row.searched][:MAX_RADARS]
    known = [value for _, values in drawn for value in values if value is not None]
    if len(domains) < 3 or not known:
        return []
    several = len({row.run for row, _ in drawn}) > 1
    figures = []
    for row, values in drawn:
        figure = go.Figure()
        base = next((other for other in rows if other.trial.role == "base" and row.run in other.runs), None)
        if base is not None:
            line = {"color": FAINT, "width": 1.2, "dash": "dot"}
            _add_outline(figure, domains, profile(base), "base", line, None)
        colour = _colour(row, colours)
        _add_outline(figure, domains, values, method_label(row), {"color": colour, "width": 2}, colour)
        title = f"{method_label(row)}, {row.run}" if several else method_label(row)
        figures.append((title, _styled_radar(figure, max(1.0, *known))))
    return figures


def _add_outline(
    figure: go.Figure,
    domains: Sequence[str],
    values: Sequence[float | None],
    name: str,
    line: dict[str, Any],
    fill: str | None,
) -> None:
    texts = [f"{escape(domain)} {with_error(value, None)}" for domain, value in zip(domains, values)]
    figure.add_scatterpolar(
        theta=[escape(domain) for domain in [*domains, domains[0]]],
        r=[*values, values[0]],
        mode="lines+markers" if fill else "lines",
        line=line,
        marker={"size": 5},
        fill="toself" if fill else "none",
        fillcolor=f"rgba{(*_channels(fill), 0.18)}" if fill else None,
        name=escape(name),
        text=[*texts, texts[0]],
        hovertemplate=f"{escape(name)}<br>%{{text}} of the specialist<extra></extra>",
        showlegend=False,
    )


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _styled_radar(figure: go.Figure, highest: float) -> go.Figure:
    styled(figure, height=240)
    radial = {
        "range": [0, highest],
        "gridcolor": GRID,
        "tickvals": [0.25, 0.5, 0.75, 1],
        "ticktext": ["", "0.5", "", "1"],
    }
    angular = {"gridcolor": GRID, "tickfont": {"size": 11, "color": INK}, "rotation": 90, "direction": "clockwise"}
    figure.update_layout(
        polar={
            "radialaxis": {**radial, "color": FAINT, "tickfont": {"size": 10}},
            "angularaxis": angular,
            "bgcolor": "white",
        }
    )
    return figure.update_layout(margin={"l": 66, "r": 66, "t": 28, "b": 28})


def _colour(row: MethodRow, colours: dict[str, str]) -> str:
    return colours.get(row.label, REFERENCE_COLOUR) if row.searched else REFERENCE_COLOUR


def _short(text: str, length: int = 28) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
