"""The race of a run's candidates: who was stopped after how many items, and what they would probably have come to."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from mergebench_ray.report.colours import method_colours
from mergebench_ray.report.styling import FAINT, finite, hover, styled
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import Trial


def reached(trial: Trial) -> float | None:
    """A candidate's objective, or the estimate of it."""
    return trial.objective.value if trial.estimate is None else trial.estimate.value


def race_chart(run: RunSummary) -> go.Figure | None:
    """Items that each candidate has answered; None where nobody was stopped."""
    if not run.stopped:
        return None
    figure, colours = go.Figure(), method_colours(run.methods)
    groups: list[tuple[str, str, list[Trial]]] = [("stopped", FAINT, run.stopped)]
    groups += [
        (f"{escape(method)}, all items", colours[method], [one for one in run.candidates if one.method == method])
        for method in run.methods
    ]
    for name, colour, trials in groups:
        if trials:
            figure.add_bar(
                x=[trial.number for trial in trials],
                y=[run.items_answered(trial) for trial in trials],
                name=name,
                marker_color=colour,
                text=[hover(trial) for trial in trials],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_layout(barmode="overlay", bargap=0.2)
    ends = [run.tried[0].number - 0.5, run.tried[-1].number + 0.5]
    figure.update_xaxes(title="candidate", range=ends, dtick=max(1, len(run.tried) // 12), tick0=0)
    figure.update_yaxes(title="items answered", range=[0, 1.04 * run.race_items])
    return styled(figure, height=300)


def add_stopped(
    figure: go.Figure, run: RunSummary, places: Sequence[Any], colours: dict[str, str], *, errors: bool = True
) -> None:
    """Small open marks for what the race stopped: estimates, and no scores.

    Args:
        figure: gets them.
        run: whose candidates were stopped.
        places: x of each of `run.stopped`; None for one that is not shown.
        colours: of methods.
        errors: whether to draw error bars.
    """
    named = False
    for method in run.methods:
        shown = [
            (place, trial) for place, trial in zip(places, run.stopped) if trial.method == method and place is not None
        ]
        if not shown:
            continue
        estimates = [trial.estimate for _, trial in shown if trial.estimate is not None]
        figure.add_scatter(
            x=[place for place, _ in shown],
            y=[one.value for one in estimates],
            error_y={
                "array": [finite(one.standard_error) for one in estimates],
                **{"thickness": 0.6, "width": 0, "color": FAINT, "visible": errors},
            },
            mode="markers",
            marker={"size": 6, "color": colours[method], "symbol": "x-thin-open"},
            name="stopped (an estimate)",
            legendgroup="stopped",
            showlegend=errors and not named,
            text=[hover(trial) for _, trial in shown],
            hovertemplate="%{text}<extra></extra>",
        )
        named = True
