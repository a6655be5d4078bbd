"""The page's front: the models that no other is better than in everything, weights that pick one, and its recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.report.page import NOTHING, Charts, render
from mergebench_ray.report.styling import BEST, FAINT, finite, hover, styled
from mergebench_ray.runs.leaderboard import by_choice, describe, front, objective_title, what_is_missed
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import Trial

FRONT_HINT = (
    "Blue: candidates of which no other is better in everything, on the validation split. Move the weights to pick the "
    "one with the largest weighted sum, or click on any candidate; its recipe is shown below."
)
ON_FRONT, REFERENCE = "#0072b2", "#b08d57"


def front_html(drawn: Charts, run: RunSummary, folder: Path) -> Markup:
    """Charts, sliders and recipes, with their data and script; empty where there is one objective, or no model yet.

    Args:
        drawn: the page's charts.
        run: its trials.
        folder: has the recipes of the front once the search is over.
    """
    members = by_choice(front(run.trials))
    if not members or members[0].choice is None:
        return NOTHING
    best = run.best or members[0]
    others = [one for one in run.candidates if one.is_scored and one not in members]
    models = [*members, *others]
    names = list(members[0].objectives)
    titles = [objective_title(name, run.domains) for name in names]
    payload = json.dumps(
        {
            "names": names,
            "titles": titles,
            "axes": [escape(title) for title in titles],
            "minimised": [one.minimised for one in members[0].objectives.values()],
            "front": len(members),
            "chosen": next((place for place, one in enumerate(models) if one.key == best.key), 0),
            "models": [_model(one, RunFolder(folder), one in members or one.key == best.key) for one in models],
            "references": [_values(one) for one in run.references if one.is_scored],
        }
    )
    return render(
        "front.html",
        titles=titles,
        names=[name.replace("_", " ") for name in names],
        scatter=drawn.html(_scatter(run, members, others, best)),
        profile=drawn.html(_profile(run, titles, members)) if len(names) > 2 else NOTHING,
        # Inside a script element only "<" could end it.
        data=Markup(payload.replace("<", "\\u003c")),
    )


def front_chart(run: RunSummary) -> go.Figure | None:
    """The first two objectives against each other; None where there is one, or no model yet."""
    members = by_choice(front(run.trials))
    if not members or members[0].choice is None:
        return None
    others = [one for one in run.candidates if one.is_scored and one not in members]
    figure = _scatter(run, members, others, run.best or members[0])
    figure.data = figure.data[:-1]  # what is picked on the page
    return figure


def _values(trial: Trial) -> list[float | None]:
    return [one.value for one in trial.objectives.values()]


def _errors(trial: Trial) -> list[float]:
    return [finite(one.standard_error) for one in trial.objectives.values()]


def _model(trial: Trial, run: RunFolder, kept: bool) -> dict[str, Any]:
    """What the script knows of a candidate; the run's folder has the recipe of one that is kept."""
    assert trial.method is not None
    file = run.front_recipe_file(trial.method, trial.number)
    has_recipe = kept and file.is_file()
    text = file.read_text(encoding="utf-8") if has_recipe else ""
    return {
        "label": trial.label,
        "values": _values(trial),
        "errors": _errors(trial),
        "missed": what_is_missed(trial),
        "file": f"{run.front_folder.name}/{file.name}" if has_recipe else None,
        "recipe": text or to_yaml({"method": trial.method, "parameters": dict(trial.parameters)}),
    }


def _scatter(run: RunSummary, members: Sequence[Trial], others: Sequence[Trial], best: Trial) -> go.Figure:
    """Two objectives against each other; the script puts others on the axes. Its traces' order is the script's too."""
    figure = go.Figure()
    references = [one for one in run.references if one.is_scored]
    marks: list[tuple[str, Sequence[Trial], dict[str, Any]]] = [
        ("other candidates", others, {"size": 7, "color": FAINT, "symbol": "circle-open"}),
        ("on the front", members, {"size": 10, "color": ON_FRONT}),
        ("references", references, {"size": 9, "color": REFERENCE, "symbol": "x"}),
        ("chosen", [best], {"size": 15, "color": BEST, "symbol": "star"}),
        ("picked here", [best], {"size": 20, "color": BEST, "symbol": "circle-open", "line": {"width": 3}}),
    ]
    for name, trials, marker in marks:
        columns = list(zip(*map(_values, trials))) or [(), ()]
        errors = list(zip(*map(_errors, trials))) or [(), ()]
        bars = {"thickness": 1, "width": 0, "visible": name == "on the front"}
        figure.add_scatter(
            x=columns[0],
            y=columns[1],
            error_x={"array": errors[0], **bars},
            error_y={"array": errors[1], **bars},
            mode="markers",
            marker=marker,
            name=name,
            text=[escape(describe(one)) if name == "references" else hover(one) for one in trials],
            hovertemplate="%{text}<extra></extra>",
            hoverinfo="skip" if name == "picked here" else None,
        )
    titles = [escape(objective_title(name, run.domains)) for name in members[0].objectives]
    figure.update_xaxes(title=titles[0])
    figure.update_yaxes(title=titles[1])
    return styled(figure, height=440)


def _profile(run: RunSummary, titles: Sequence[str], members: Sequence[Trial]) -> go.Figure:
    """A line over the objectives for each model of the front, and one, the last, for what is picked."""
    figure = go.Figure()
    texts = [escape(title) for title in titles]
    for trial in members:
        figure.add_scatter(
            x=texts,
            y=_values(trial),
            mode="lines+markers",
            line={"color": ON_FRONT, "width": 1.2},
            marker={"size": 5},
            opacity=0.4,
            showlegend=False,
            hovertemplate=f"{escape(trial.label)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.add_scatter(
        x=texts, y=[], mode="lines+markers", line={"color": BEST, "width": 3}, name="picked here", hoverinfo="skip"
    )
    return styled(figure, height=440)
