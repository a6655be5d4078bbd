"""Advice as a page: how far each layer moved, how pairs lie to each other, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from mergebench_ray.commands.advice import Advice
from mergebench_ray.report.colours import METHOD_COLOURS
from mergebench_ray.report.page import Cell, Charts, Section, figures_html, page_html, table_html
from mergebench_ray.report.styling import styled

_DIVERGING = [[0.0, "#b2182b"], [0.5, "#f7f7f7"], [1.0, "#2166ac"]]


def advice_page(advice: Advice) -> str:
    """One HTML file that needs nothing else."""
    drawn = Charts()
    charts = [("How far each layer moved", drawn.html(drift_chart(advice)))]
    if len(advice.specialists) > 1:
        charts.append(("Cosines between task vectors", drawn.html(cosine_chart(advice))))
        charts.append(("Cosines, layer by layer", drawn.html(layers_chart(advice))))
    facts = [
        ("base", advice.base),
        ("specialists", len(advice.specialists)),
        *((f"start: {rule}", _numbers(values)) for rule, values in advice.starts.items()),
    ]
    finding = " ".join(advice.remarks) or "Nothing stands out: no pair is much alike or pulls apart."
    rows = [
        (
            [
                Cell(f"{advice.specialists[a]}, {advice.specialists[b]}"),
                Cell(where),
                Cell(f"{group.cosines[a, b]:.3f}", float(group.cosines[a, b])),
                Cell(f"{100 * group.agreement[a, b]:.1f}", float(group.agreement[a, b])),
            ],
            False,
        )
        for where, group in {"everywhere": advice.whole, **advice.by_kind, **advice.by_layer}.items()
        for a, b in advice.pairs()
    ]
    columns = (("pair", True), ("where", True), ("cosine", False), ("same sign\n% of what both move", False))
    sections = [
        Section(
            "Pictures",
            "Length of task vectors over the base's; 1 is the same direction.",
            figures_html(charts, "figures"),
        )
    ]
    if rows:
        sections.append(Section("Numbers", "Click a header to sort.", table_html(columns, rows)))
    return page_html("Advice before a merge", finding, facts, sections, scores=False)


def drift_chart(advice: Advice) -> go.Figure:
    """Length of each task vector over the base's, by layer."""
    figure = go.Figure()
    layers = _layers(advice)
    for place, name in enumerate(advice.specialists):
        figure.add_scatter(
            x=layers,
            y=[group.drift[place] for group in advice.by_layer.values()],
            mode="lines+markers",
            name=name,
            line={"color": METHOD_COLOURS[place % len(METHOD_COLOURS)]},
        )
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(title="length over the base's", rangemode="tozero")
    return styled(figure, height=420)


def cosine_chart(advice: Advice) -> go.Figure:
    """Cosine of each pair."""
    names, cosines = list(advice.specialists), advice.whole.cosines
    figure = go.Figure()
    figure.add_heatmap(
        z=cosines.tolist(), x=names, y=names, zmin=-1, zmax=1, colorscale=_DIVERGING, texttemplate="%{z:.2f}"
    )
    figure.update_yaxes(autorange="reversed")
    return styled(figure, height=420)


def layers_chart(advice: Advice) -> go.Figure:
    """Cosine of each pair in each layer, in the colours of the largest."""
    pairs = list(advice.pairs())
    cosines = [[float(group.cosines[a, b]) for group in advice.by_layer.values()] for a, b in pairs]
    most = max(abs(one) for row in cosines for one in row) or 1.0
    figure = go.Figure()
    figure.add_heatmap(
        z=cosines,
        x=_layers(advice),
        y=[f"{advice.specialists[a]}, {advice.specialists[b]}" for a, b in pairs],
        zmin=-most,
        zmax=most,
        colorscale=_DIVERGING,
        hovertemplate="%{y}, layer %{x}: %{z:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(autorange="reversed")
    return styled(figure, height=max(300, 80 + 36 * len(pairs)))


def _layers(advice: Advice) -> list[str]:
    return [name.removeprefix("layer ").removesuffix(" the layers") for name in advice.by_layer]


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
