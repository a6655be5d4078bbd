"""What a replay found, as a page: what each setting costs against what it loses, and the numbers."""

from __future__ import annotations

import plotly.graph_objects as go

from mergebench_ray.report.colours import METHOD_COLOURS
from mergebench_ray.report.page import Cell, Charts, Section, figures_html, page_html, table_html
from mergebench_ray.report.styling import FAINT, SPLIT_COLOURS, styled
from mergebench_ray.runs.leaderboard import with_error
from mergebench_ray.search.replay.replay import Outcome, ReplayResult

_SHOWN = 4  # lines; the others are shown by a click on their names
_COLUMNS = (
    *(("setting", True), ("items asked\n%", False), ("regret\nmean", False), ("regret\n95 % of orders", False)),
    *(("loss on fresh items\n± standard error", False), ("best stopped\n% of orders", False)),
    ("chosen\ncandidate (% of orders)", True),
)


def replay_page(result: ReplayResult) -> str:
    """One HTML file that needs nothing else."""
    drawn = Charts()
    charts = [
        ("What a setting costs, and what it loses", drawn.html(costs_chart(result))),
        ("Who was scored how far", drawn.html(answered_chart(result))),
    ]
    hint = "Further left is cheaper, further down is better: what nothing is left of and below is worth choosing."
    facts = [
        ("candidates", len(result.candidates)),
        ("items of each", result.items),
        ("seeded orders", result.orders),
        ("objective", result.objective),
        ("fresh items", fresh_words(result)),
    ]
    rows = [(_cells(one), False) for one in result.outcomes]
    sections = [
        Section("Cost and loss", hint, figures_html(charts, "figures")),
        Section("Numbers", "Click a header to sort.", table_html(_COLUMNS, rows)),
    ]
    return page_html(f"Replay of {result.run}", finding(result), facts, sections)


def finding(result: ReplayResult) -> str:
    """The result in a sentence."""
    full = (
        f"Scoring all {len(result.candidates)} candidates in full asks {len(result.candidates) * result.items} items."
    )
    others = [one for one in result.outcomes if one.items_asked < 1 and one.regret <= 0.01]
    if not others:
        return f"{full} No setting that was tried asks fewer and loses at most 0.01 on average."
    cheapest = min(others, key=lambda one: one.items_asked)
    return (
        f"{full} With {cheapest.setting} it would have been {cheapest.items_asked:.0%} of them, and the candidate that "
        f"is chosen {cheapest.regret:.3f} below the best on average."
    )


def fresh_words(result: ReplayResult) -> str:
    """Which items were fresh, in words."""
    if result.fresh == "test":
        return "the test split"
    return "a third of validation, held back, another one in each order"


def costs_chart(result: ReplayResult) -> go.Figure:
    """Share of items asked against regret: the mean, and a line up to what 95 % of the orders stay below."""
    figure = go.Figure()
    shown = [one for one in result.outcomes if one.items_asked < 1 or one.regret > 0] or result.outcomes
    figure.add_scatter(
        x=[100 * one.items_asked for one in shown],
        y=[one.regret for one in shown],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, one.regret_95 - one.regret) for one in shown],
            "arrayminus": [0.0 for _ in shown],
            "color": FAINT,
            "thickness": 1,
        },
        mode="markers+text",
        marker={"size": 11, "color": SPLIT_COLOURS["validation"]},
        text=[one.setting for one in shown],
        textposition="middle right",
        name="regret on validation: mean, and 95 % of orders",
        hovertemplate="%{text}: %{x:.1f} % of items, regret %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=[100 * one.items_asked for one in shown],
        y=[one.fresh_loss for one in shown],
        mode="markers",
        marker={"size": 9, "color": SPLIT_COLOURS["test"], "symbol": "diamond"},
        name="loss on fresh items: mean",
        text=[one.setting for one in shown],
        hovertemplate="%{text}: %{x:.1f} % of items, loss on fresh items %{y:.4f}<extra></extra>",
    )
    most = max(100 * one.items_asked for one in shown)
    figure.update_xaxes(title="items asked, % of scoring everything", range=[0, most * 1.35])
    figure.update_yaxes(title=result.objective.replace("_", " ") + ", below the best")
    figure.add_hline(y=0, line={"color": FAINT, "width": 1})
    return styled(figure, height=480)


def answered_chart(result: ReplayResult) -> go.Figure:
    """For each candidate, best first, how much of the items it was asked."""
    best_first = sorted(range(len(result.values)), key=lambda place: -result.values[place])
    if result.direction == "minimize":
        best_first.reverse()
    figure = go.Figure()
    # Lines of settings that treat all candidates alike say nothing.
    raced = [one for one in result.outcomes if max(one.answered) > min(one.answered)]
    for place, one in enumerate(raced):
        figure.add_scatter(
            x=list(range(1, len(best_first) + 1)),
            y=[100 * one.answered[candidate] for candidate in best_first],
            mode="lines+markers",
            name=one.setting,
            visible=True if place < _SHOWN else "legendonly",
            line={"color": METHOD_COLOURS[place % len(METHOD_COLOURS)]},
            text=[f"candidate {result.candidates[c]}: {result.values[c]:.3f}" for c in best_first],
            hovertemplate="%{text}, %{y:.0f} % of its items<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="candidates, from best to worst")
    figure.update_yaxes(title="items asked of it, mean %", rangemode="tozero")
    return styled(figure, height=420)


def _cells(one: Outcome) -> list[Cell]:
    chosen = ", ".join(f"{number} ({share:.0%})" for number, share in one.chosen[:3])
    return [
        Cell(one.setting),
        Cell(f"{100 * one.items_asked:.1f}", one.items_asked),
        Cell(f"{one.regret:.4f}", one.regret),
        Cell(f"{one.regret_95:.4f}", one.regret_95),
        Cell(with_error(one.fresh_loss, one.fresh_loss_error, digits=4), one.fresh_loss),
        Cell(f"{100 * one.best_stopped:.0f}", one.best_stopped),
        Cell(chosen),
    ]
