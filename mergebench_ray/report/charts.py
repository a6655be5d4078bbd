"""The report's charts, one function each: a run's summary in, a plotly figure out (None: nothing to draw).

They are not Optuna's: those know neither error bars, nor references, nor methods, and need the study, which may be in
a storage elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mergebench_ray.config.fields import SPLITS
from mergebench_ray.report.colours import method_colours
from mergebench_ray.report.race_charts import add_stopped, reached
from mergebench_ray.report.styling import BEST, FAINT, SPLIT_COLOURS, finite, hover, styled
from mergebench_ray.runs.leaderboard import (
    best_first,
    describe,
    distinct,
    leaderboard,
    on_split,
    with_error,
)
from mergebench_ray.runs.summary import SPLIT_MEANING, RunSummary
from mergebench_ray.runs.trials import COMPARED_WITH, Trial, is_known

SPLIT_SYMBOLS = {"validation": "diamond", "final": "square", "test": "circle"}
REFERENCE_COLOURS = {"base": "#9aa0a6", "average": "#5f6b76", "reference": "#b08d57"}
REFERENCE_DASHES = {"base": "dot", "average": "dash", "reference": "dashdot"}
MAX_LEADERS = 12
MAX_PAIRED_DOMAINS = 8
MAX_PARAMETER_CHARTS = 30


def leaderboard_chart(run: RunSummary) -> go.Figure | None:
    """What the search is after with error bars, models from best to worst, a mark per split."""
    final = [row.trial for row in leaderboard(run.trials, run.last_split, MAX_LEADERS)]
    shown = {trial.key[:3] for trial in final}
    search = [row.trial for row in leaderboard(distinct(run.trials), "validation", MAX_LEADERS)]
    models = [t for t in [*final, *(t for t in search if t.key[:3] not in shown)] if is_known(t.objective.value)]
    if not models:
        return None
    models.reverse()
    splits = [split for split in SPLITS if any(t.split == split and t.role == "candidate" for t in run.trials)]
    figure = go.Figure()
    for place, split in enumerate(splits):
        offset = 0.28 * (place / (len(splits) - 1) - 0.5) if len(splits) > 1 else 0.0
        found = [(i, on_split(run.trials, model, split)) for i, model in enumerate(models)]
        rows = [(i + offset, trial) for i, trial in found if trial and is_known(trial.objective.value)]
        figure.add_scatter(
            x=[trial.objective.value for _, trial in rows],
            y=[position for position, _ in rows],
            error_x=_error_bars([trial for _, trial in rows]),
            mode="markers",
            marker={"size": 11, "color": SPLIT_COLOURS[split], "symbol": SPLIT_SYMBOLS[split]},
            name=SPLIT_MEANING[split],
            text=[hover(trial) for _, trial in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    labels = [_model_label(run, model) for model in models]
    figure.update_yaxes(tickvals=list(range(len(models))), ticktext=labels, range=[-0.6, len(models) - 0.4])
    if run.is_share:
        figure.add_vline(x=1, line={"color": FAINT, "width": 1, "dash": "dash"})
        figure.add_annotation(
            x=1,
            y=0,
            yref="paper",
            xanchor="right",
            yanchor="bottom",
            text="all specialists at once",
            showarrow=False,
            font={"color": FAINT, "size": 12},
        )
    figure.update_xaxes(title=escape(run.objective_title), rangemode="tozero")
    return styled(figure, height=150 + 44 * len(models))


def domains_chart(run: RunSummary) -> go.Figure | None:
    """Scores by domain of base, references, best candidate and each domain's specialist, on the final split."""
    split = run.last_split
    models = [t for t in run.trials if t.split == split and t.role in COMPARED_WITH]
    best = on_split(run.trials, run.best, split) if run.best else None
    specialists = {t.name: t for t in run.trials if t.split == split and t.role == "specialist"}
    colours = method_colours(run.methods)
    figure = go.Figure()
    for trial in [*models, *([best] if best else [])]:
        colour = REFERENCE_COLOURS.get(trial.role) or colours.get(trial.method or "", BEST)
        _add_bars(figure, _model_label(run, trial), colour, [(d, trial) for d in run.domains])
    own = [(domain, specialists[domain]) for domain in run.domains if domain in specialists]
    if own:
        _add_bars(figure, "specialist of the domain", "#d9c9a3", own)
    if not figure.data:
        return None
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(categoryorder="array", categoryarray=[escape(domain) for domain in run.domains])
    figure.update_yaxes(title="score", rangemode="tozero")
    return styled(figure, height=400)


def progress_chart(run: RunSummary) -> go.Figure | None:
    """What the search is after, of each candidate in the order of the search, and the best so far.

    Candidates that do not keep all constraints are drawn open, and are not the best so far.
    """
    if not run.candidates:
        return None
    figure, colours = go.Figure(), method_colours(run.methods)
    for method, trials in _by_method(run):
        figure.add_scatter(
            x=[trial.number for trial in trials],
            y=[trial.objective.value for trial in trials],
            error_y={**_error_bars(trials), "thickness": 1, "width": 0},
            mode="markers",
            marker={"size": 9, "color": colours[method], "symbol": _symbols(trials)},
            name=escape(method),
            text=[hover(trial) for trial in trials],
            hovertemplate="%{text}<extra></extra>",
        )
    add_stopped(figure, run, [trial.number for trial in run.stopped], colours)
    best_so_far, best = [], run.candidates[0]
    for trial in run.candidates:
        best = min(best, trial, key=best_first)
        best_so_far.append(best.objective.value)
    figure.add_scatter(
        x=[trial.number for trial in run.candidates],
        y=best_so_far,
        mode="lines",
        line={"color": BEST, "width": 2, "shape": "hv"},
        name="best so far",
        hoverinfo="skip",
    )
    ends = [run.tried[0].number - 0.5, run.tried[-1].number + 0.5]
    for trial in run.references:
        if is_known(trial.objective.value):
            figure.add_scatter(
                x=ends,
                y=[trial.objective.value] * 2,
                mode="lines",
                line={"color": REFERENCE_COLOURS[trial.role], "dash": REFERENCE_DASHES[trial.role], "width": 2},
                name=escape(describe(trial)),
                hovertemplate=f"{hover(trial)}<extra></extra>",
            )
    figure.update_xaxes(title="candidate", range=ends, dtick=max(1, len(run.tried) // 12), tick0=0)
    figure.update_yaxes(title=escape(run.objective_title))
    return styled(figure, height=440)


def parameter_charts(run: RunSummary) -> list[go.Figure]:
    """What the search is after against each number or choice that was searched, a small chart each.

    Of more than `MAX_PARAMETER_CHARTS`, those that go most with the score (rank correlation) are drawn.
    """
    columns = run.searched_values()
    scores = [reached(trial) or 0.0 for trial in run.tried]
    names = sorted(columns, key=lambda name: -_association(columns[name], scores))[:MAX_PARAMETER_CHARTS]
    return [_parameter_chart(run, name, columns[name]) for name in columns if name in names]


def tradeoff_chart(run: RunSummary) -> go.Figure | None:
    """A line per candidate over the domains: what of each specialist's score it keeps."""
    if not run.candidates or len(run.domains) < 2:
        return None
    figure, colours = go.Figure(), method_colours(run.methods)
    for method, trials in _by_method(run):
        for index, trial in enumerate(trials):
            line = {"color": colours[method], "width": 1.3}
            _add_profile(figure, run, trial, escape(method), line, group=method, legend=index == 0, opacity=0.45)
    for trial in run.references:
        line = {"color": REFERENCE_COLOURS[trial.role], "width": 2, "dash": REFERENCE_DASHES[trial.role]}
        _add_profile(figure, run, trial, escape(describe(trial)), line, group=trial.name)
    if run.best is not None:
        line = {"color": BEST, "width": 3}
        _add_profile(figure, run, run.best, f"best: {escape(run.best.label)}", line, group="best candidate")
    figure.add_hline(y=1, line={"color": FAINT, "width": 1, "dash": "dash"})
    figure.update_xaxes(categoryorder="array", categoryarray=[escape(domain) for domain in run.domains])
    figure.update_yaxes(title="score / specialist's score", rangemode="tozero")
    return styled(figure, height=440)


def pairs_chart(run: RunSummary) -> go.Figure | None:
    """Scatter matrix of the domain scores: which domains rise together, and which at each other's cost.

    Made of plain scatter charts, since plotly's own scatter matrix draws nothing where a browser has no WebGL. None for
    more than `MAX_PAIRED_DOMAINS` domains, where the panels would be too small to read.
    """
    domains = run.domains
    size = len(domains) - 1
    if len(run.candidates) < 2 or not 1 <= size < MAX_PAIRED_DOMAINS:
        return None
    colours = method_colours(run.methods)
    marks = [(escape(m), trials, colours[m], "circle", 7) for m, trials in _by_method(run)]
    marks += [(escape(describe(t)), [t], REFERENCE_COLOURS[t.role], "x", 8) for t in run.references]
    marks += [(f"best: {escape(run.best.label)}", [run.best], BEST, "star", 12)] if run.best else []
    figure = make_subplots(
        size, size, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=0.02
    )
    for row, column in [(r, c) for r in range(size) for c in range(r + 1)]:
        across, upwards = domains[column], domains[row + 1]
        for name, trials, colour, symbol, width in marks:
            both = [trial for trial in trials if across in trial.domains and upwards in trial.domains]
            figure.add_scatter(
                row=row + 1,
                col=column + 1,
                x=[trial.domains[across].score for trial in both],
                y=[trial.domains[upwards].score for trial in both],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": width, "line": {"width": 0.5, "color": "white"}},
                name=name,
                legendgroup=name,
                showlegend=row == column == 0,
                text=[hover(trial) for trial in both],
                hovertemplate="%{text}<extra></extra>",
            )
        if row == size - 1:
            figure.update_xaxes(title=escape(across), row=row + 1, col=column + 1)
        if column == 0:
            figure.update_yaxes(title=escape(upwards), row=row + 1, col=column + 1)
    return styled(figure, height=160 + 130 * size)


def time_chart(run: RunSummary) -> go.Figure | None:
    """Seconds of each scored model: merging, loading, computing in the engine, the rest of scoring."""
    trials = sorted(run.trials, key=lambda trial: trial.started)
    if not any(trial.score_seconds for trial in trials):
        return None
    parts = (
        ("engine computes", "#0072b2", [t.answering_seconds for t in trials]),
        ("rest of scoring", "#9cc4de", [max(0.0, t.score_seconds - t.answering_seconds) for t in trials]),
        ("load into the engine", "#e69f00", [t.load_seconds for t in trials]),
        ("merge", "#d55e00", [t.merge_seconds for t in trials]),
    )
    labels = [f"{escape(t.label)}{' (test)' if t.split == 'test' else ''}" for t in trials]
    figure = go.Figure()
    for name, colour, seconds in parts:
        figure.add_bar(
            x=list(range(len(trials))),
            y=seconds,
            name=name,
            marker_color=colour,
            customdata=labels,
            hovertemplate="%{customdata}: %{y:.2f} s<extra>" + name + "</extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.15)
    order = ", the test split last" if run.last_split == "test" else ""
    figure.update_xaxes(title=f"scored models in order of time{order}", showticklabels=False, showgrid=False)
    figure.update_yaxes(title="seconds")
    return styled(figure, height=340)


def _parameter_chart(run: RunSummary, name: str, column: Sequence[Any]) -> go.Figure:
    figure, colours = go.Figure(), method_colours(run.methods)
    categorical = any(isinstance(value, str | bool) for value in column)
    value_of = {trial.number: value for trial, value in zip(run.tried, column)}
    for method, trials in _by_method(run):
        shown = [trial for trial in trials if value_of[trial.number] is not None]
        values = [value_of[trial.number] for trial in shown]
        figure.add_scatter(
            x=[escape(str(value)) for value in values] if categorical else values,
            y=[trial.objective.value for trial in shown],
            mode="markers",
            marker={
                "size": [11 if trial is run.best else 8 for trial in shown],
                "color": colours[method],
                "symbol": _symbols(shown),
                "opacity": 0.85,
                "line": {"color": BEST, "width": [2.5 if trial is run.best else 0 for trial in shown]},
            },
            text=[hover(trial) for trial in shown],
            hovertemplate=f"{escape(name)} %{{x}}<br>%{{text}}<extra></extra>",
            showlegend=False,
        )
    places = [value_of[trial.number] for trial in run.stopped]
    if any(place is not None for place in places):
        texts = [None if place is None else escape(str(place)) for place in places]
        add_stopped(figure, run, texts if categorical else places, colours, errors=False)
    figure.update_xaxes(title=escape(name), type="category" if categorical else "linear")
    known = [value for trial in run.tried if (value := reached(trial)) is not None and is_known(value)]
    figure.update_yaxes(range=_padded(known))
    styled(figure, height=240)
    return figure.update_layout(margin={"l": 8, "r": 8, "t": 10, "b": 8})


def _add_bars(figure: go.Figure, name: str, colour: str, cells: Sequence[tuple[str, Trial]]) -> None:
    results = [(domain, trial, trial.domains[domain]) for domain, trial in cells if domain in trial.domains]
    figure.add_bar(
        x=[escape(domain) for domain, _, _ in results],
        y=[result.score for _, _, result in results],
        error_y={"array": [finite(r.standard_error) for _, _, r in results], "thickness": 1.2, "width": 3},
        name=name,
        marker_color=colour,
        text=[with_error(r.score, r.standard_error) + f", {r.items} items" for _, _, r in results],
        textposition="none",
        hovertemplate=f"{name}<br>%{{x}}: %{{text}}<extra></extra>",
    )


def _add_profile(
    figure: go.Figure,
    run: RunSummary,
    trial: Trial,
    name: str,
    line: dict[str, Any],
    *,
    group: str,
    legend: bool = True,
    opacity: float = 1.0,
) -> None:
    figure.add_scatter(
        x=[escape(domain) for domain in run.domains],
        y=[run.recovered(trial, domain) for domain in run.domains],
        mode="lines+markers",
        line=line,
        marker={"size": 5},
        opacity=opacity,
        name=name,
        legendgroup=group,
        showlegend=legend,
        hovertemplate=f"{escape(trial.label)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
    )


def _by_method(run: RunSummary) -> Iterator[tuple[str, list[Trial]]]:
    for method in run.methods:
        trials = [trial for trial in run.candidates if (trial.method or "") == method]
        if trials:
            yield method, trials


def _model_label(run: RunSummary, trial: Trial) -> str:
    is_best = run.best is not None and trial.key[:3] == run.best.key[:3]
    return f"<b>best: {escape(trial.label)}</b>" if is_best else escape(describe(trial))


def _symbols(trials: Sequence[Trial]) -> list[str]:
    """Of candidates that keep all constraints, and of those that do not."""
    return ["circle-open" if trial.missed else "circle" for trial in trials]


def _error_bars(trials: Sequence[Trial]) -> dict[str, Any]:
    return {"array": [finite(trial.objective.standard_error) for trial in trials], "thickness": 1.5, "width": 4}


def _padded(values: Sequence[float]) -> list[float]:
    """An axis range with room around the values, the same for charts that stand side by side."""
    if not values:
        return [0.0, 1.0]
    room = 0.08 * (max(values) - min(values)) or 0.05
    return [min(values) - room, max(values) + room]


def _association(values: Sequence[Any], scores: Sequence[float]) -> float:
    """Absolute rank correlation of a searched number with the score; choices count as 1, so they are always kept."""
    pairs = [(value, score) for value, score in zip(values, scores) if value is not None]
    if any(isinstance(value, str | bool) for value, _ in pairs):
        return 1.0
    first, second = (pd.Series(column, dtype=float).rank() for column in zip(*pairs))
    correlation = first.corr(second)
    return abs(correlation) if math.isfinite(correlation) else 0.0
