"""The leaderboard of one run in a few lines of HTML, for notebooks; it brings its own style, and needs no script."""

from __future__ import annotations

from markupsafe import Markup

from mergebench_ray.report.page import render
from mergebench_ray.runs.leaderboard import MISSING, leaderboard, with_error, with_objective
from mergebench_ray.runs.summary import SPLIT_MEANING, RunSummary

_CANDIDATES = 5


def run_table(run: RunSummary, heading: str, footing: str) -> Markup:
    """The best candidates beside what they have to beat, on the last split that the best was scored on.

    Args:
        run: its trials.
        heading: a line above.
        footing: a line below.
    """
    rows = [
        {
            "place": row.place or MISSING,
            "label": row.label,
            "objective": with_objective(row.trial),
            "scores": [
                with_error(result.score, result.standard_error) if (result := row.trial.domains.get(name)) else MISSING
                for name in run.domains
            ],
            "is_best": row.label.startswith("best: "),
        }
        for row in leaderboard(run.trials, run.last_split, _CANDIDATES)
    ]
    return render(
        "run_table.html",
        heading=heading,
        footing=footing,
        title=run.objective_title,
        domains=run.domains,
        rows=rows,
        split=SPLIT_MEANING[run.last_split],
    )
