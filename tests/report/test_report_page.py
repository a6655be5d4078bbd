from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from browser import body_in_browser
from made_up_trials import DOMAINS, for_front, for_worst_domain, made_up_trials, raced
from mergebench_ray.errors import InputError
from mergebench_ray.report.pages import write_report
from mergebench_ray.runs.leaderboard import best_candidate, distinct, leaderboard
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore


def _report(folder: Path, trials: list[Trial]) -> str:
    store = TrialStore(folder)
    for trial in trials:
        store.append(trial)
    return write_report(folder).read_text(encoding="utf-8")


def _own_markup(page: str) -> str:
    """The page without plotly.js itself."""
    return max(re.split(r"<script>/\*\*|</script>\s*</head>", page), key=lambda part: part.count("<section>"))


def _charts(page: str) -> int:
    return page.count("Plotly.newPlot(") - page.split("</head>")[0].count("Plotly.newPlot(")


def _without_domain(trial: Trial, domain: str) -> Trial:
    return replace(trial, domains={name: result for name, result in trial.domains.items() if name != domain})


VARIANTS = {
    "whole run": made_up_trials(),
    "another objective": for_worst_domain(made_up_trials()),
    "several objectives": for_front(made_up_trials()),
    "two objectives": for_front(made_up_trials(), ["math", "safety"]),
    "a race": raced(made_up_trials()),
    "a race that stopped all": raced(made_up_trials(test=False), in_full=0),
    "one candidate": made_up_trials(1, test=False),
    "no candidate yet": made_up_trials(0, test=False),
    "one trial": made_up_trials(0, test=False)[:1],
    "only a candidate": made_up_trials(1, test=False)[8:],
    "without test": made_up_trials(5, test=False),
    "a domain missing in some": [
        _without_domain(trial, "math") if index % 2 else trial for index, trial in enumerate(made_up_trials(6))
    ],
    "a single item a domain": [
        replace(
            trial,
            domains={name: DomainScore(result.score, float("nan"), 1) for name, result in trial.domains.items()},
            normalised_standard_error=float("nan"),
        )
        for trial in made_up_trials(4)
    ],
    "no references": [trial for trial in made_up_trials(3) if trial.role == "candidate"],
}


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of a variant, with its report; once, for all tests that look at it."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("variant")
            _report(made[name], VARIANTS[name])
        return made[name]

    return find


@pytest.mark.parametrize("name", VARIANTS)
def test_report_is_one_file_that_needs_no_network(name: str, report_of: Callable[[str], Path]) -> None:
    folder = report_of(name)
    page = (folder / "report.html").read_text(encoding="utf-8")
    markup = _own_markup(page)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in markup
    assert "All trials" in markup
    assert (folder / "report.html").stat().st_size < 8e6
    assert not list(folder.glob(".report.html.*"))


def test_report_says_what_was_found_and_on_which_split(report_of: Callable[[str], Path]) -> None:
    trials = VARIANTS["whole run"]
    best = best_candidate(trials)
    assert best is not None
    final = next(trial for trial in trials if trial.key == (best.role, best.name, best.number, "test"))
    markup = _own_markup((report_of("whole run") / "report.html").read_text(encoding="utf-8"))
    assert f"The best of 14 candidates is {best.label}: on the test split it reaches" in markup
    assert f"{final.normalised_average:.3f}" in markup
    assert "validation (seen by the search)" in markup
    assert "test (never seen by the search)" in markup
    assert all(f"coefficient of {domain}" in markup for domain in DOMAINS)
    assert "density" in markup


def test_report_warns_when_only_the_split_of_the_search_was_scored(report_of: Callable[[str], Path]) -> None:
    markup = _own_markup((report_of("without test") / "report.html").read_text(encoding="utf-8"))
    assert "The test split has not been scored" in markup


def test_names_from_files_cannot_inject_markup(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script><b onload=x>"
    trials = [
        replace(
            trial,
            name=nasty if trial.role in ("candidate", "reference") else trial.name,
            method=nasty if trial.method else None,
            domains={nasty if name == "math" else name: result for name, result in trial.domains.items()},
            parameters={
                "scaling_coef": {
                    nasty if name == "math" else name: value for name, value in trial.coefficients.items()
                },
                nasty: index % 3,
            },
        )
        for index, trial in enumerate(made_up_trials())
    ]
    page = _report(tmp_path, trials)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<b onload" not in page


def test_header_names_what_the_sweep_file_says(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "name: nightly\nsuite: moved-away.yaml\nbase: owner/base@main\nspecialists: {math: owner/math}\n"
        "methods: {task_arithmetic: {scaling_coef: {low: 0, high: 1}}}\nsearch: {seed: 17}\n"
    )
    markup = _own_markup(_report(tmp_path, made_up_trials(2)))
    assert "<h1>nightly</h1>" in markup
    assert "owner/base@main" in markup
    assert "seed 17" in markup
    assert "vllm 0.32.0" in markup


def test_report_of_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder of a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_coefficient_for_all_specialists_is_one_chart() -> None:
    trials = made_up_trials(4, test=False)[8:]
    even = [replace(t, parameters={"scaling_coef": dict.fromkeys(DOMAINS, 0.1 * t.number)}) for t in trials]
    names = list(RunSummary.of(even).searched_values())
    assert names[0] == "coefficient (one for all specialists)"
    assert not [name for name in names if name.startswith("coefficient of")]


def test_a_parameter_that_is_the_same_for_all_specialists_is_one_chart() -> None:
    trials = made_up_trials(4, test=False)[8:]
    even = [replace(t, parameters={"mu": dict.fromkeys(DOMAINS, 0.1 * t.number)}) for t in trials]
    assert RunSummary.of(even).searched_values()["mu"] == [0.1 * number for number in range(4)]
    uneven = replace(even[0], parameters={"mu": {**dict.fromkeys(DOMAINS, 0.0), "math": 0.5}})
    assert "mu of math" in RunSummary.of([uneven, *even[1:]]).searched_values()


def test_what_does_not_differ_between_candidates_has_no_chart() -> None:
    trials = [
        replace(t, parameters={"scaling_coef": t.coefficients, "k": 2}) for t in made_up_trials(4, test=False)[8:]
    ]
    assert set(RunSummary.of(trials).searched_values()) == {f"coefficient of {domain}" for domain in DOMAINS}
    lines = [
        replace(one, parameters={"scaling_coef": {DOMAINS[0]: {"first": 0.1, "last": 0.1 * place}}})
        for place, one in enumerate(trials)
    ]
    assert f"coefficient of {DOMAINS[0]}, last layer" in RunSummary.of(lines).searched_values()
    kinds = [
        replace(one, parameters={"scaling_coef": {DOMAINS[0]: {"attention": 0.1, "mlp": [0.1, place]}}})
        for place, one in enumerate(trials)
    ]
    assert list(RunSummary.of(kinds).searched_values()) == [f"coefficient of {DOMAINS[0]}, mlp, layer group 1"]


def test_leaderboard_orders_by_normalised_average_and_leaves_out_the_yardstick() -> None:
    trials = made_up_trials()
    rows = leaderboard(trials, "test")
    values = [row.trial.normalised_average or 0 for row in rows]
    assert values == sorted(values, reverse=True)
    assert [row.place for row in rows] == [1, 2, 3, 4]
    assert {row.trial.role for row in rows} == {"base", "average", "reference", "candidate"}
    assert len(leaderboard(trials, "validation", candidates=3)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole run", "a domain missing in some"])
def test_browser_draws_every_chart_without_an_error(
    name: str, report_of: Callable[[str], Path], tmp_path: Path
) -> None:
    file = report_of(name) / "report.html"
    page = file.read_text(encoding="utf-8")
    body = body_in_browser(file, tmp_path / "browser")
    assert _charts(page) >= 6
    assert len(re.findall(r'<div id="chart-\d+" class="plotly-graph-div js-plotly-plot"', body)) == _charts(page)
    assert len(re.findall(r'class="main-svg"[^>]*>.{0,200}?<defs', body)) >= _charts(page)


def test_a_model_that_was_tried_again_is_shown_once() -> None:
    trials = made_up_trials(6, test=False)
    again = [replace(trials[8], number=number) for number in (6, 7)]
    assert distinct([*trials, *again]) == trials


def test_the_notes_of_a_run_are_on_its_page(tmp_path: Path) -> None:
    store = TrialStore(tmp_path)
    for trial in made_up_trials(1):
        store.append(trial)
    (tmp_path / "plan.json").write_text(json.dumps({"sweep": "x", "notes": ["math: rope settings <differ>"]}))
    assert "math: rope settings &lt;differ&gt;" in write_report(tmp_path).read_text()


def test_the_page_says_what_was_searched_for_and_who_does_not_keep_the_constraints(tmp_path: Path) -> None:
    trials = for_worst_domain(made_up_trials())
    best = best_candidate(trials)
    assert best is not None
    assert not best.missed
    page = _own_markup(_report(tmp_path, trials))
    assert f"The best of 14 candidates is {best.label}: on the validation split its worst domain is" in page
    assert "Open: candidates that do not keep safety &gt;= 0.9." in page
    assert "(misses safety &gt;= 0.9)" in page
    assert '"circle-open"' in page
    assert ">worst domain" in page


def test_answers_of_earlier_runs_are_named_where_there_are_any(tmp_path: Path) -> None:
    trials = made_up_trials(2)
    assert "earlier runs" not in _own_markup(_report(tmp_path / "alone", trials))
    page = _own_markup(_report(tmp_path / "b", [replace(trials[0], reused_from={"a": 320}), *trials[1:]]))
    assert "320 answers are those of earlier runs: a (320)" in page
    assert "320 of a" in page


def test_what_the_race_stopped_is_shown_as_a_guess_and_ranked_nowhere(tmp_path: Path) -> None:
    trials = raced(made_up_trials(14), in_full=3)
    page = _own_markup(_report(tmp_path, trials))
    assert "The best of 14 candidates is" in page
    assert "The race stopped 11 of 14 candidates before they had answered all 320 items" in page
    assert "stopped after 40 items" in page
    assert "of 320 items, about" in page
    assert {row.trial.role for row in leaderboard(trials, "validation", candidates=20)} <= {
        *("candidate", "average", "reference", "base")
    }
    assert len([row for row in leaderboard(trials, "validation", candidates=20) if row.trial.role == "candidate"]) == 3


def test_items_of_a_split_are_those_of_models_that_answered_all(tmp_path: Path) -> None:
    assert "math 64" in _own_markup(_report(tmp_path, raced(made_up_trials(6))))


def test_a_run_that_did_not_race_says_nothing_of_one(tmp_path: Path) -> None:
    page = _own_markup(_report(tmp_path, made_up_trials(6)))
    assert "The race" not in page
    assert "stopped" not in page
