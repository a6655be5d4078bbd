"""report.html: everything a run found, in one file that opens offline."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.config.budget import MOST_CANDIDATES
from mergebench_ray.config.fields import SPLITS
from mergebench_ray.config.objective import DEFAULT, each_objective
from mergebench_ray.errors import InputError
from mergebench_ray.report import charts
from mergebench_ray.report.colours import method_colours
from mergebench_ray.report.fresh_scores import fresh_section
from mergebench_ray.report.front_section import FRONT_HINT, front_html
from mergebench_ray.report.grown_ranges import grown_ranges
from mergebench_ray.report.importance import importance_section
from mergebench_ray.report.method_charts import methods_chart
from mergebench_ray.report.method_sections import items_section, method_sections, methods_table
from mergebench_ray.report.method_table import method_label
from mergebench_ray.report.own_output import check_outputs, write_output
from mergebench_ray.report.page import NOTHING, Cell, Charts, Section, figures_html, page_html, table_html
from mergebench_ray.report.race_charts import race_chart
from mergebench_ray.runs.comparison import (
    MethodRow,
    Run,
    compare,
    not_comparable,
    ranked_by,
    ranking_title,
    same_aim,
    wall_seconds,
)
from mergebench_ray.runs.leaderboard import (
    MISSING,
    choice_title,
    describe,
    objective_title,
    with_error,
    with_objective,
)
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import budget_finding
from mergebench_ray.runs.summary import SPLIT_MEANING, RunSummary, within_errors
from mergebench_ray.runs.trials import Trial, is_known, searched


def write_report(run_folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of one run, from its ``trials.parquet`` and, where they are there, ``sweep.yaml`` and items.

    Args:
        run_folder: the run's folder.
        out: the file to write; None for ``report.html`` in the run's folder.

    Returns:
        the report's path.

    Raises:
        InputError: if the folder holds no trials, or they are damaged.
    """
    run_folder = Path(run_folder)
    path = RunFolder(run_folder).report_file if out is None else Path(out)
    page = run_page(Run.read(run_folder))
    check_outputs({"out": path}, [run_folder])
    return write_output(path, page, "out")


def run_page(run: Run, *, live: str | None = None) -> str:
    """The report of one run; of one that is served, `live` is the version."""
    return page_html(run.name, run.summary.finding(), _facts(run), _sections(run), live=live)


def comparison_page(runs: Sequence[Run]) -> str:
    """One report that compares several runs."""
    rows = compare(runs)
    colours = method_colours(row.label for row in rows if row.searched)
    drawn = Charts()
    leaders = _chart(drawn, methods_chart(rows, colours)) + methods_table(runs, rows)
    hint = "Further right is better; where error bars overlap, the order may be chance. Grey: references. "
    if not_comparable(rows):
        hint = "Each run's models by themselves: what stands further right than another run's need not be better. "
    hint += "Circles: the test split, which no search saw; open diamonds: validation, by which the row was chosen."
    sections = [
        Section("Leaderboard", hint, leaders),
        *method_sections(runs, rows, colours, drawn),
        *items_section(runs),
    ]
    title = f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    return page_html(title, comparison_finding(rows), _run_facts(runs), sections)


def comparison_finding(rows: Sequence[MethodRow]) -> str:
    """What a comparison of runs found, in one or two sentences of plain text."""
    if reason := not_comparable(rows):
        return f"These runs are {reason}. So none of their models is the best, and no row has a place."
    placed = [row for row in rows if row.place is not None]
    if not placed:
        return "No model has a score to be ranked by yet."
    first, alike = placed[0], same_aim(rows)
    trial = first.trial
    found = ranked_by(trial, alike)
    reached = with_error(found.value, found.standard_error)
    text = f"The best of {len(placed)} models is {method_label(first)} of {first.run}: on the {trial.split} split "
    title = ranking_title(rows)
    is_average = title == objective_title(DEFAULT, ())
    text += f"it reaches {reached} of what the specialists reach" if is_average else f"its {title} is {reached}"
    close = [row for row in placed[1:] if within_errors(trial, row.trial)]
    if close:
        text += f". Within the error bars of it: {', '.join(f'{method_label(row)} ({row.run})' for row in close)}"
    return text + "."


def _run_facts(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    facts = []
    for run in runs:
        candidates = run.summary.tried
        took = duration(wall_seconds(candidates))
        split = f"{run.summary.last_split} split"
        suite = f"suite {run.sweep.suite}, " if run.sweep else ""
        facts.append((run.name, "\n".join([f"{suite}{len(candidates)} candidates in {took}, {split}", *run.notes])))
    return facts


def _sections(found: Run) -> list[Section]:
    drawn = Charts()
    run = found.summary
    rows = compare([found])
    described = [
        Section(
            "Leaderboard",
            _leaderboard_hint(run),
            _chart(drawn, charts.leaderboard_chart(run)) + methods_table([found], rows),
        ),
        *method_sections([found], rows, method_colours(run.methods), drawn),
        *fresh_section(run),
        Section(
            "Scores by domain",
            f"Each domain's own score on the {run.last_split} split, before it is divided by the specialist's. "
            "A good merge comes close to the specialist in every domain at once.",
            _chart(drawn, charts.domains_chart(run)),
        ),
        Section(
            "Score over the search",
            "Each dot is a candidate on the validation split, in the order tried; the line is the best so far. "
            + " ".join(filter(None, (run.outlook(), _constraints_hint(run)))),
            _chart(drawn, charts.progress_chart(run)),
        ),
        Section("The front", FRONT_HINT, front_html(drawn, run, found.folder)),
        Section("The race", _race_hint(run), _chart(drawn, race_chart(run))),
        Section(
            "Score over each coefficient and hyper-parameter",
            f"Each dot is a candidate on validation: what was chosen, left to right, and {run.objective_title}, "
            "upwards. A slope or a hump shows what matters; the best candidate is ringed.",
            _parameter_grid(drawn, run, charts.parameter_charts(run)),
        ),
        *importance_section(run, drawn),
        Section(
            "What a candidate gains and gives up",
            "A line per candidate on the validation split: score / specialist's score in each domain. "
            "Lines that cross show trade-offs; 1.0 is the specialist of that domain.",
            _chart(drawn, charts.tradeoff_chart(run)),
        ),
        Section(
            "Domain against domain",
            "Scores on the validation split, every domain against every other. A cloud that falls to the right means "
            "that one domain is bought with the other.",
            _pairs(drawn, charts.pairs_chart(run)),
        ),
        Section("Where the time went", _time_hint(run), _chart(drawn, charts.time_chart(run))),
        *items_section([found]),
        Section("All trials", "Every scored model; a click on a column's name sorts by it.", _trials_table(run)),
    ]
    return [section for section in described if section.content]


def _chart(drawn: Charts, figure: go.Figure | None) -> Markup:
    return NOTHING if figure is None else drawn.html(figure)


def _pairs(drawn: Charts, figure: go.Figure | None) -> Markup:
    """Too wide for a phone."""
    return NOTHING if figure is None else figures_html([("", drawn.html(figure))], "scroll")


def _parameter_grid(drawn: Charts, run: RunSummary, figures: Sequence[go.Figure]) -> Markup:
    key = [("", colour, method) for method, colour in method_colours(run.methods).items()]
    return figures_html([("", drawn.html(figure)) for figure in figures], "grid", key)


def _facts(found: Run) -> list[tuple[str, Any]]:
    run = found.summary
    facts = _sweep_facts(found.sweep) if found.sweep is not None else []
    if found.sweep is not None and (grown := grown_ranges(found.sweep, searched(run.trials))):
        facts.append(("ranges that grow", "\n".join(grown)))
    if found.sweep is not None and found.sweep.search.budget is not None:
        limits = found.sweep.search.budget.limits
        facts.append(("budget", budget_finding(RunFolder(found.folder), run.trials, limits)))
    if found.notes:
        facts.append(("notes", "\n".join(found.notes)))
    for split in SPLITS:
        complete = [t for t in run.trials if t.split == split and t.role != "stopped"]
        counts = {d: r.items for t in complete for d, r in t.domains.items()}
        if counts:
            items = ", ".join(f"{domain} {counts[domain]}" for domain in sorted(counts))
            facts.append((SPLIT_MEANING[split], f"{items} items"))
    if reused := _reused(run.trials):
        where = ", ".join(f"{name} ({count})" for name, count in reused.items())
        facts.append(("scored before", f"{reused.total()} answers are those of earlier runs: {where}"))
    versions = {name: version for trial in run.trials for name, version in trial.versions.items()}
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    begun, ended = min(t.started for t in run.trials), max(t.finished for t in run.trials)
    facts.append(("time", f"{begun:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M} UTC"))
    return facts


def _sweep_facts(sweep: Sweep) -> list[tuple[str, Any]]:
    try:
        base, specialists = sweep.model_references(sweep.load_suite())
        models = [
            ("base", str(base)),
            ("specialists", "\n".join(f"{name}: {reference}" for name, reference in specialists.items())),
        ]
    except InputError:  # the suite's file has moved since the run: the report needs none of it
        models = [
            ("base", sweep.base or MISSING),
            ("specialists", ", ".join(sorted(sweep.specialists or {})) or MISSING),
        ]
    search = sweep.search
    return [
        ("suite", sweep.suite),
        *models,
        ("methods searched", ", ".join(sweep.methods)),
        ("search", f"{_most_candidates(search)}, {search.sampler}, seed {search.seed}"),
        ("objective", _goal_text(search)),
    ]


def _most_candidates(search: SearchOptions) -> str:
    most = search.most_candidates
    return "as many candidates as the budget pays" if most == MOST_CANDIDATES else f"{most} candidates"


def _goal_text(search: SearchOptions) -> str:
    """What was searched for, as the sweep says it."""
    aims = [
        aim if isinstance(aim, str) else ", ".join(f"{domain}: {weight:g}" for domain, weight in aim.items())
        for aim in each_objective(search.objective)
    ]
    text = aims[0] if len(aims) == 1 else "the front of " + "; ".join(aims)
    kept = [f"{name} {condition}" for name, condition in search.constraints.items()]
    return "\n".join([text, *(f"a winner keeps {one}" for one in kept)])


def _constraints_hint(run: RunSummary) -> str:
    return f"Open: candidates that do not keep {' and '.join(run.constraints)}." if run.constraints else ""


def _race_hint(run: RunSummary) -> str:
    text = (
        "Each bar is a candidate; point at one to see what it would probably have come to. "
        "Grey ones were clearly worse than the leader on the items that they had answered, and are told to the sampler "
        "as estimates. Every decision, with what it was made from, is in decisions.jsonl."
    )
    return " ".join(filter(None, (run.race_finding(), run.race_cost(), text)))


def _leaderboard_hint(run: RunSummary) -> str:
    hint = "Further right is better; where error bars overlap, the order may be chance. "
    if run.best is not None and run.best.choice is not None:
        chosen = choice_title(run.best.choice)
        hint = f"In the order of the normalised average; the best was chosen from the front by {chosen}. {hint}"
    if run.last_split == "validation":
        return hint + "All scores are on validation, by which the best candidate was chosen: its own is flattering."
    return hint + (
        "Dark circles: the test split, which the search never saw. Light diamonds: validation, by which it went, so "
        "that the best's score there is flattering. Squares: items held back from it."
    )


def _time_hint(run: RunSummary) -> str:
    merged = [trial for trial in run.trials if trial.merge_seconds > 0]
    total = sum(t.merge_seconds + t.load_seconds + t.score_seconds for t in run.trials)
    if not total:
        return ""
    share = sum(trial.answering_seconds for trial in run.trials) / total
    hint = f"Seconds of each scored model. The engine computed for {share:.0%} of {duration(total)}."
    if merged:
        merge = statistics.median(trial.merge_seconds for trial in merged)
        load = statistics.median(trial.load_seconds for trial in merged)
        hint += f" A typical merge took {merge:.2f} s, loading it into the engine {load:.2f} s."
    return hint


def duration(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def _trials_table(run: RunSummary) -> Markup:
    domains = run.domains
    names = [(trial, trial.flat()) for trial in run.trials]
    details = dict.fromkeys(name for _, row in names for name in row if name.startswith(("coefficient.", "parameter.")))
    columns = [("model", True), ("role", True), ("split", True), ("method", True)]
    columns += [("proposed by", True)] if _says_who_proposed(run) else []
    columns += [("normalised average", False)]
    columns += [(run.objective_title, False)] if _has_own_aim(run) else []
    columns += [("misses", True)] if run.constraints else []
    columns += [(name, False) for name in domains]
    columns += [(name.removeprefix("parameter."), False) for name in details]
    columns += [("merge s", False), ("load s", False), ("score s", False), ("tokens", False), ("digest", True)]
    cells = [_trial_cells(run, trial, row, list(details)) for trial, row in names]
    if _reused(run.trials):
        columns += [("answers of earlier runs", True)]
        cells = [[*some, _reused_cell(trial)] for some, (trial, _) in zip(cells, names)]
    return table_html(columns, [(some, trial is run.best) for some, (trial, _) in zip(cells, names)])


def _has_own_aim(run: RunSummary) -> bool:
    return run.objective_title != objective_title(DEFAULT, ())


def _reused(trials: Sequence[Trial]) -> Counter[str]:
    """Earlier run -> answers whose scores are those of that run."""
    return sum((Counter(trial.reused_from) for trial in trials), Counter())


def _reused_cell(trial: Trial) -> Cell:
    text = ", ".join(f"{count} of {name}" for name, count in trial.reused_from.items())
    return Cell(text or MISSING, text)


def _says_who_proposed(run: RunSummary) -> bool:
    return any(trial.proposed_by for trial in run.trials)


def _trial_cells(run: RunSummary, trial: Trial, row: dict[str, Any], details: Sequence[str]) -> list[Cell]:
    role = f"stopped after {trial.estimate.answered} items" if trial.estimate is not None else trial.role
    role = trial.stopped_after if trial.failure else role
    cells = [Cell(text, text) for text in (describe(trial), role, trial.split, trial.method or "")]
    cells += [Cell(trial.proposed_by or MISSING, trial.proposed_by)] if _says_who_proposed(run) else []
    average = trial.normalised_average
    cells.append(Cell(with_error(average, trial.normalised_standard_error), average if is_known(average) else None))
    if _has_own_aim(run):
        value = trial.objective.value if trial.objectives else None
        cells.append(Cell(with_objective(trial) if trial.objectives else MISSING, value if is_known(value) else None))
    cells += [Cell(", ".join(trial.missed) or MISSING, ", ".join(trial.missed))] if run.constraints else []
    for domain in run.domains:
        result = trial.domains.get(domain)
        text = with_error(result.score, result.standard_error) if result else MISSING
        cells.append(Cell(text, result.score if result else None))
    for name in details:
        value = row.get(name)
        text = MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        cells.append(Cell(text, value))
    for seconds in (trial.merge_seconds, trial.load_seconds, trial.score_seconds):
        cells.append(Cell(f"{seconds:.2f}", seconds))
    return [*cells, Cell(f"{trial.tokens:,}", trial.tokens), Cell(trial.digest[:12], trial.digest)]
