"""The report's charts by name, for notebooks and programs that want one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mergebench_ray.errors import InputError, nearest
from mergebench_ray.report import charts
from mergebench_ray.report.colours import method_colours
from mergebench_ray.report.front_section import front_chart
from mergebench_ray.report.method_charts import methods_chart
from mergebench_ray.report.race_charts import race_chart
from mergebench_ray.report.styling import styled
from mergebench_ray.runs.comparison import Run, compare

_COLUMNS = 3
_HEIGHT = 240  # pixels of a small chart


def _methods(run: Run) -> go.Figure | None:
    return methods_chart(compare([run]), method_colours(run.summary.methods))


def _parameters(run: Run) -> go.Figure | None:
    return _side_by_side(charts.parameter_charts(run.summary))


_FIGURES: dict[str, Callable[[Run], go.Figure | None]] = {
    "search": lambda run: charts.progress_chart(run.summary),
    "leaderboard": lambda run: charts.leaderboard_chart(run.summary),
    "methods": _methods,
    "domains": lambda run: charts.domains_chart(run.summary),
    "parameters": _parameters,
    "race": lambda run: race_chart(run.summary),
    "front": lambda run: front_chart(run.summary),
    "tradeoff": lambda run: charts.tradeoff_chart(run.summary),
    "pairs": lambda run: charts.pairs_chart(run.summary),
    "time": lambda run: charts.time_chart(run.summary),
}
FIGURE_NAMES = tuple(_FIGURES)


def figure_of(run: Run, name: str) -> go.Figure:
    """One of the report's charts.

    Raises:
        InputError: there is none of that name, or nothing for it to show.
    """
    if name not in _FIGURES:
        raise InputError(f"plot {name!r:.80}: {nearest(name, FIGURE_NAMES)}")
    figure = _FIGURES[name](run)
    if figure is None:
        others = ", ".join(other for other, draw in _FIGURES.items() if draw(run) is not None)
        raise InputError(f"{run.folder}: has nothing for the plot {name!r} to show; there is {others or 'none yet'}")
    return figure


def _side_by_side(figures: Sequence[go.Figure]) -> go.Figure | None:
    """Small charts with an axis of their own each as one figure."""
    if not figures:
        return None
    rows = -(-len(figures) // _COLUMNS)
    together = make_subplots(rows, min(len(figures), _COLUMNS), vertical_spacing=0.3 / rows)
    for place, figure in enumerate(figures):
        where = {"row": place // _COLUMNS + 1, "col": place % _COLUMNS + 1}
        for trace in figure.data:
            together.add_trace(trace, **where)
        together.update_xaxes(title=figure.layout.xaxis.title, type=figure.layout.xaxis.type, **where)
        together.update_yaxes(range=figure.layout.yaxis.range, **where)
    return styled(together, height=_HEIGHT * rows)
