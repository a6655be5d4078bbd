"""What charts share: colours, the text beside the pointer, the page's style."""

from __future__ import annotations

import math
from html import escape

import plotly.graph_objects as go
import plotly.io

from mergebench_ray.config.objective import DEFAULT
from mergebench_ray.runs.leaderboard import describe, objective_title, what_is_missed, with_error, with_objective
from mergebench_ray.runs.trials import Trial

INK, GRID, FAINT = "#22272e", "#e6e8eb", "#8b949e"
BEST = "#111111"
SPLIT_COLOURS = {"validation": "#7fa8c9", "final": "#3f78a8", "test": "#0b3d66"}


def hover(trial: Trial) -> str:
    """What is shown beside the pointer: the model and all its scores."""
    lines = [f"<b>{escape(describe(trial))}</b> on {trial.split}"]
    if trial.estimate is not None:
        about = with_error(trial.estimate.value, trial.estimate.standard_error)
        return f"{lines[0]}<br>{trial.stopped_after}, about {about}"
    if trial.objective_name != DEFAULT:
        lines.append(f"{escape(objective_title(trial.objective_name, trial.domains))} {with_objective(trial)}")
    lines.append(f"normalised average {with_error(trial.normalised_average, trial.normalised_standard_error)}")
    lines += [escape(what_is_missed(trial))] if trial.missed else []
    lines += [
        f"{escape(domain)} {with_error(result.score, result.standard_error)}"
        for domain, result in sorted(trial.domains.items())
    ]
    return "<br>".join(lines)


def finite(value: float | None) -> float:
    """The value, or 0 where there is none: an error bar that is not drawn."""
    return value if value is not None and math.isfinite(value) else 0.0


def styled(figure: go.Figure, height: int) -> go.Figure:
    """The figure in the page's style; `height` in pixels."""
    return figure.update_layout(template=_STYLE, height=height)


def _style() -> go.layout.Template:
    """Of Plotly's white template what these charts show, since each chart copies it, and what is ours."""
    white = plotly.io.templates["plotly_white"]
    axis = {"automargin": True, "gridcolor": GRID, "zeroline": False}
    layout = {
        **{name: white.layout[name] for name in ("autotypenumbers", "colorscale", "colorway", "hovermode", "polar")},
        "xaxis": {**white.layout.xaxis.to_plotly_json(), **axis},
        "yaxis": {**white.layout.yaxis.to_plotly_json(), **axis},
        "margin": {"l": 8, "r": 16, "t": 30, "b": 8},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    }
    return go.layout.Template(layout=layout, data={"bar": white.data.bar})


_STYLE = _style()
