"""Which coefficients and hyper-parameters mattered: what part of the scores' variance each explains, by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from mergebench_ray.report.colours import method_colours
from mergebench_ray.report.page import Charts, Section, figures_html
from mergebench_ray.report.race_charts import reached
from mergebench_ray.report.styling import FAINT, styled
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trials import is_known

Floats = npt.NDArray[np.float64]

_FEWEST = 20
_FOR_EACH = 4  # candidates for each number
_MOST = 500  # the latest: a forest of more takes seconds
_TREES = 24
_RESAMPLED = 10


@dataclass(frozen=True)
class Importance:
    """How much each number of a method matters for what the search is after.

    Attributes:
        method: the method.
        candidates: how many it was made from.
        shares: number -> share of the variance that it explains, all together 1, and the standard error of that.
        by_chance: what a share seldom exceeds where nothing matters: of 20 shuffled scores' shares, one does.
    """

    method: str
    candidates: int
    shares: Mapping[str, tuple[float, float]]
    by_chance: float


def importances(run: RunSummary) -> list[Importance]:
    """Of each method with enough candidates: at least 20, and 4 for each number.

    fANOVA (Hutter, Hoos and Leyton-Brown, 2014), as Optuna makes it: a forest is fitted to what candidates have scored,
    or to the estimate of it where they were stopped. Errors are those of candidates drawn again from the same ones.
    """
    found = []
    values = run.searched_values()
    for method in run.methods:
        places = [
            place for place, trial in enumerate(run.tried) if trial.method == method and is_known(reached(trial))
        ][-_MOST:]
        columns = {name: [column[place] for place in places] for name, column in values.items()}
        columns = {name: column for name, column in columns.items() if None not in column and len(set(column)) > 1}
        scores = np.array([reached(run.tried[place]) for place in places], np.float64)
        if len(columns) < 2 or len(places) < max(_FEWEST, _FOR_EACH * len(columns)) or np.ptp(scores) == 0:
            continue
        random = np.random.default_rng(0)
        everyone = np.arange(len(places))
        shares = _shares(columns, everyone, scores)
        if not shares.any():
            continue
        again = np.stack(
            [
                _shares(columns, drawn, scores[drawn])
                for drawn in (random.integers(0, len(places), len(places)) for _ in range(_RESAMPLED))
            ]
        )
        shuffled = np.stack([_shares(columns, everyone, random.permutation(scores)) for _ in range(_RESAMPLED)])
        errors = again.std(axis=0)
        pairs = {name: (float(share), float(error)) for name, share, error in zip(columns, shares, errors)}
        found.append(Importance(method, len(places), pairs, float(np.quantile(shuffled, 0.95))))
    return found


def importance_section(run: RunSummary, drawn: Charts) -> list[Section]:
    """Importances with what must be known to read them; none where no method has enough candidates."""
    found = importances(run)
    counts = ", ".join(f"{one.candidates} of {one.method}" for one in found)
    hint = (
        f"What part of the differences in {run.objective_title} between candidates each number explains, within the "
        f"range that was searched (fANOVA, from {counts}). Bars have standard errors. Left of the dashed line is what "
        "shuffled scores reach, too: nothing can be said of what ends there. What explains little may stay as it is, "
        "or be the same for all."
    )
    figures = [(one.method, drawn.html(importance_chart(run, one))) for one in found]
    return [Section("What mattered", hint, figures_html(figures, "pair"))] if found else []


def importance_chart(run: RunSummary, found: Importance) -> go.Figure:
    """A bar for each number of a method, the most important on top; to the left of the line it may be chance."""
    ordered = sorted(found.shares.items(), key=lambda pair: pair[1][0])
    figure = go.Figure()
    figure.add_bar(
        x=[share for _, (share, _) in ordered],
        y=[escape(name) for name, _ in ordered],
        error_x={"array": [error for _, (_, error) in ordered], "thickness": 1, "width": 3},
        orientation="h",
        marker_color=method_colours(run.methods)[found.method],
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=found.by_chance, line={"color": FAINT, "width": 1, "dash": "dash"})
    figure.update_xaxes(title="share of the variance", range=[0, 1])
    return styled(figure, height=90 + 30 * len(ordered))


def _shares(columns: Mapping[str, Sequence[Any]], places: npt.NDArray[np.int64], scores: Floats) -> Floats:
    """Of some candidates, in the order of the columns; all 0 where there is no difference to explain."""
    import optuna  # with what it needs for this it takes seconds, and most pages have too few candidates

    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(min(column), max(column))
        if _are_numbers(column)
        else optuna.distributions.CategoricalDistribution(sorted(set(map(str, column))))
        for name, column in columns.items()
    }
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    optuna.logging.set_verbosity(said)
    for place, score in zip(places, scores):
        chosen = {
            name: column[place] if _are_numbers(column) else str(column[place]) for name, column in columns.items()
        }
        study.add_trial(optuna.create_trial(params=chosen, distributions=distributions, value=float(score)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # no tree has found any variance, as where scores differ in one or two candidates
        return np.zeros(len(columns))
    return np.array([found.get(name, 0.0) for name in columns])


def _are_numbers(column: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
