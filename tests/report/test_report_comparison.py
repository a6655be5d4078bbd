from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from browser import body_in_browser
from made_up_trials import DOMAINS, START, for_worst_domain, made_up_trials
from mergebench_ray.cli import app
from mergebench_ray.commands.report import report
from mergebench_ray.errors import InputError
from mergebench_ray.markup import latex_text
from mergebench_ray.report.items import (
    ITEMS_A_TASK,
    MAX_ANSWER,
    item_payload,
    scored_models,
)
from mergebench_ray.report.method_table import methods_csv, methods_latex, methods_markdown
from mergebench_ray.runs.comparison import NOT_COMPARABLE, compare, read_runs, reservations, wall_seconds
from mergebench_ray.runs.leaderboard import best_of_each_method
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial

KEYWORDS = {"harmbench": "1 - keyword_refusal", "xstest": "keyword_refusal_accuracy"}
JUDGED = {"harmbench": "1 - micro_asr", "xstest": "overall_accuracy"}


def _run(folder: Path, trials: list[Trial], items: int = 0, answer: str = "7") -> Path:
    store = TrialStore(folder)
    for trial in trials:
        store.append(trial, _items(trial, items, answer))
    return folder


def _items(trial: Trial, count: int, answer: str) -> list[dict[str, object]]:
    return [
        {
            "domain": domain,
            "task": f"mini_{domain}",
            "item": f"{domain}-{trial.split}-{index}",
            "prompt_digest": f"{index:04x}{domain}",
            "answer": answer,
            "score": float((index + len(trial.name)) % 3 == 0),
        }
        for domain in trial.domains
        for index in range(count)
    ]


def _safety_counted(trials: list[Trial], counted: dict[str, str]) -> list[Trial]:
    return [
        replace(t, domains={**t.domains, "safety": replace(t.domains["safety"], counted=counted)})
        if "safety" in t.domains
        else t
        for t in trials
    ]


def _evaluation(folder: Path, name: str, scores: dict[str, float], counted: str = "acc") -> None:
    file = folder / "forgetting" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    domains = {task: {"score": score, "standard_error": 0.01, "items": 100} for task, score in scores.items()}
    tasks = {task: {"task": task, "counted": counted} for task in scores}
    file.write_text(json.dumps({"model": "m", "split": "test", "domains": domains, "tasks": tasks}))


def _without_padding(line: str) -> str:
    """A line of a Markdown table with single spaces."""
    return " ".join(line.split())


def _embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="item-data">(.*?)</script>', page, re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_best_of_each_method_of_each_run_has_a_row_and_test_comes_before_validation(tmp_path: Path) -> None:
    first, second = made_up_trials(), made_up_trials(10, seed=1, test=False)
    rows = compare(read_runs([_run(tmp_path / "one", first), _run(tmp_path / "two", second)]))
    found = {(row.run, row.trial.name, row.trial.number) for row in rows if row.searched}
    assert found == {
        (name, best.name, best.number)
        for name, trials in (("one", first), ("two", second))
        for best in best_of_each_method(trials)
    }
    assert [row.trial.split for row in rows] == sorted((row.trial.split for row in rows), key=lambda s: s != "test")
    on_test = [row for row in rows if row.trial.split == "test"]
    assert [row.place for row in on_test] == list(range(1, len(on_test) + 1))
    values = [row.trial.normalised_average or 0 for row in on_test]
    assert values == sorted(values, reverse=True)
    assert {row.place for row in rows if row.trial.split != "test"} == {None}


def test_a_reference_that_runs_share_is_one_row(tmp_path: Path) -> None:
    trials = made_up_trials()
    rows = compare(read_runs([_run(tmp_path / "one", trials), _run(tmp_path / "two", trials)]))
    assert [row.runs for row in rows if row.trial.role == "base"] == [("one", "two")]
    assert len([row for row in rows if row.searched]) == 2 * len(best_of_each_method(trials))


def test_cost_is_of_all_candidates_of_the_method_and_waiting_does_not_count(tmp_path: Path) -> None:
    trials = made_up_trials(8)
    rows = compare(read_runs([_run(tmp_path / "run", trials)]))
    for row in (row for row in rows if row.searched):
        tried = [t for t in trials if t.role == "candidate" and t.split == "validation" and t.method == row.label]
        assert row.searched == len(tried)
        assert row.engine_seconds == pytest.approx(sum(t.engine_seconds for t in tried))
        assert row.tokens == sum(t.tokens for t in tried)
        assert row.tuning_seconds == pytest.approx(wall_seconds(tried))
    spans = ((0, 10), (5, 12), (100, 103))
    moved = [
        replace(t, started=START + timedelta(seconds=a), finished=START + timedelta(seconds=b))
        for t, (a, b) in zip(trials, spans)
    ]
    assert wall_seconds(moved) == 15


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    trials = made_up_trials()
    same = read_runs([_run(tmp_path / "one", trials), _run(tmp_path / "two", trials)])
    said = reservations(same, compare(same))
    assert not [warning for warning in said if "same items" in warning or "specialists" in warning]
    other = [replace(trial, digest=trial.digest[::-1]) for trial in trials]
    runs = read_runs([tmp_path / "one", _run(tmp_path / "three", other)])
    assert any("different specialists" in warning for warning in reservations(runs, compare(runs)))


def test_runs_over_different_items_have_no_best_and_every_form_of_the_table_says_so(tmp_path: Path) -> None:
    one = _run(tmp_path / "one", made_up_trials())
    two = _run(tmp_path / "two", [replace(t, items_digest=f"other-{t.split}") for t in made_up_trials(seed=1)])
    rows = compare(read_runs([one, two]))
    assert {row.place for row in rows} == {None}
    assert [row.run for row in rows] == sorted(row.run for row in rows)
    paths = {name: tmp_path / f"t.{name}" for name in ("csv", "markdown", "latex")}
    for _ in range(2):  # the second time over what the first wrote
        page = report([one, two], out=tmp_path / "both.html", **paths)["report"].read_text()
    assert f'<p class="finding">These runs are {NOT_COMPARABLE}.' in page
    assert f'<p class="warning">These runs are {NOT_COMPARABLE}.' in page
    assert '<tr class="best">' not in page
    assert not re.search(r"The best of \d", page)
    table = list(csv.DictReader(paths["csv"].open()))
    assert {(line["place"], line["comparable"]) for line in table} == {("", NOT_COMPARABLE)}
    assert paths["markdown"].read_text().startswith(f"> {NOT_COMPARABLE}\n\n|")
    assert f"\\textbf{{{NOT_COMPARABLE}}}" in paths["latex"].read_text()
    shown = CliRunner().invoke(app, ["report", str(one), str(two), "--out", str(tmp_path / "both.html")])
    assert "not comparable" in shown.output
    assert all(line.split()[1] == "–" for line in shown.output.splitlines() if " base " in line)


def test_runs_over_the_same_items_have_a_best_and_the_terminal_shows_it(tmp_path: Path) -> None:
    one, two = _run(tmp_path / "one", made_up_trials()), _run(tmp_path / "two", made_up_trials(seed=1))
    result = CliRunner().invoke(app, ["report", str(one), str(two), "--out", str(tmp_path / "both.html")])
    assert "not comparable" not in result.output
    best = compare(read_runs([one, two]))[0]
    assert any("1" in line and best.label in line and best.run in line for line in result.output.splitlines())
    assert max(map(len, result.output.splitlines()[:-1])) <= 80


def test_a_metric_that_is_not_the_judges_is_named_in_every_form_of_the_leaderboard(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _safety_counted(made_up_trials(), KEYWORDS))
    written = report([run], csv=tmp_path / "t.csv", markdown=tmp_path / "t.md", latex=tmp_path / "t.tex")
    label = "1 - keyword_refusal, keyword_refusal_accuracy"
    assert f"safety<small>{label}</small>" in written["report"].read_text()
    assert f"safety ({label})" in written["markdown"].read_text()
    assert "keyword\\_refusal" in written["latex"].read_text()
    assert {row["safety.metric"] for row in csv.DictReader(written["csv"].open())} == {label}


def test_where_runs_counted_different_things_every_cell_says_which(tmp_path: Path) -> None:
    keywords = _run(tmp_path / "keywords", _safety_counted(made_up_trials(), KEYWORDS))
    judged = _run(tmp_path / "judged", _safety_counted(made_up_trials(seed=1), JUDGED))
    old = _run(tmp_path / "old", made_up_trials(seed=2))
    lines = [
        _without_padding(line) for line in methods_markdown(compare(read_runs([keywords, judged, old]))).splitlines()
    ]
    assert "| safety |" in lines[0]
    for name, metric in (("keywords", "1 - keyword"), ("judged", "1 - micro_asr"), ("old", "metric not recorded")):
        rows = [line for line in lines[2:] if f"| {name} |" in line]
        assert rows
        assert all(f"({metric}" in line for line in rows)


def test_csv_has_every_number_unrounded_in_a_column_of_its_own(tmp_path: Path) -> None:
    rows = compare(read_runs([_run(tmp_path / "run", made_up_trials())]))
    table = list(csv.DictReader(io.StringIO(methods_csv(rows))))
    assert len(table) == len(rows)
    for line, row in zip(table, rows):
        assert float(line["normalised_average"]) == row.trial.normalised_average
        assert line["place"] == str(row.place or "")
        assert line["tuning_tokens"] == (str(row.tokens) if row.searched else "")
        assert line["split"] == row.trial.split
        for domain in DOMAINS:
            assert float(line[f"{domain}.score"]) == row.trial.domains[domain].score
            assert float(line[f"{domain}.standard_error"]) == row.trial.domains[domain].standard_error


def test_latex_is_escaped_and_every_line_has_every_column(tmp_path: Path) -> None:
    assert latex_text("a_b & 50% #1 \\x{y}~^$") == (
        "a\\_b \\& 50\\% \\#1 \\textbackslash{}x\\{y\\}\\textasciitilde{}\\textasciicircum{}\\$"
    )
    rows = compare(read_runs([_run(tmp_path / "run_1", made_up_trials())]))
    text = methods_latex(rows)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(lines) == 2 + len(rows)
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns[1])}
    assert all(rule in text for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert "task\\_arithmetic" in text
    assert "$\\pm$" in text


def test_forgetting_is_read_beside_the_run_and_measured_against_the_base(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials())
    _evaluation(run, "base", {"mmlu": 0.5, "triviaqa": 0.4})
    _evaluation(run, "ties", {"mmlu": 0.45, "triviaqa": 0.4})
    rows = {row.label: row for row in compare(read_runs([run]))}
    kept = rows["ties"].forgetting
    assert kept is not None
    assert kept.retained == pytest.approx((0.9 + 1.0) / 2)
    first = math.hypot(0.01, 0.9 * 0.01) / 0.5
    second = math.hypot(0.01, 0.01) / 0.4
    assert kept.retained_error == pytest.approx(math.hypot(first, second) / 2)
    assert rows["task_arithmetic"].forgetting is None
    page = report([run])["report"].read_text()
    assert "<h2>Forgetting</h2>" in page
    assert "mmlu<small>acc</small>" in page
    assert "| retained (1 = base) |" in _without_padding(methods_markdown(compare(read_runs([run]))))


def test_forgetting_of_an_unknown_model_or_in_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials())
    _evaluation(run, "tie", {"mmlu": 0.5})
    with pytest.raises(InputError, match=r"tie\.json: the run has no model of that name; call it one of .*ties"):
        read_runs([run])
    (run / "forgetting" / "tie.json").unlink()
    (run / "forgetting" / "base.json").write_text("{")
    with pytest.raises(InputError, match=r"base\.json: not what `evaluate --out` writes"):
        read_runs([run])
    _evaluation(run, "base", {"mmlu": 0.5})
    _evaluation(run, "ties", {"mmlu": 0.5, "coqa": 0.5})
    with pytest.raises(InputError, match=r"ties\.json: 'coqa' was not scored for the base"):
        read_runs([run])
    _evaluation(run, "ties", {"mmlu": 0.5}, counted="acc_norm")
    with pytest.raises(InputError, match=r"ties\.json: mmlu counts acc_norm, the base's acc"):
        read_runs([run])
    file = run / "forgetting" / "ties.json"
    file.write_text(file.read_text().replace('"test"', '"validation"'))
    with pytest.raises(InputError, match=r"ties\.json: scored on validation, the base was not"):
        read_runs([run])


def test_what_the_base_scores_nothing_in_leaves_open_what_is_retained(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials())
    _evaluation(run, "base", {"mmlu": 0.5, "coqa": 0.0})
    _evaluation(run, "ties", {"mmlu": 0.4, "coqa": 0.1})
    kept = read_runs([run])[0].forgetting["ties"]
    assert (kept.retained, kept.results["mmlu"].score) == (None, 0.4)


def test_a_perfect_score_where_lower_is_better_leaves_open_what_is_retained(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials())
    for model, score in {"base": 0.2, "ties": 0.0}.items():
        _evaluation(run, model, {"harm": score})
        file = run / "forgetting" / f"{model}.json"
        content = json.loads(file.read_text())
        content["domains"]["harm"]["higher_is_better"] = False
        file.write_text(json.dumps(content))
    kept = read_runs([run])[0].forgetting["ties"]
    assert (kept.retained, kept.results["harm"].score) == (None, 0.0)


def test_the_page_holds_the_answers_and_all_paired_differences(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>"
    run = _run(tmp_path / "run", made_up_trials(), items=6, answer=nasty)
    page = report([run])["report"].read_text()
    assert "<script>alert" not in page
    content = _embedded(page)
    assert content["texts"] == [nasty]
    assert {task["domain"] for task in content["tasks"]} == set(DOMAINS)
    both_splits = 2 * 6 * len(DOMAINS)
    assert f"All {both_splits} items are here." in page


def test_items_beyond_the_budget_are_left_out_for_all_models_alike_and_it_is_said(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials(4), items=150, answer="x" * (MAX_ANSWER + 5))
    models, missing = scored_models(read_runs([run]))
    assert not missing
    text, shown, total = item_payload(models, {}, max_bytes=60_000)
    content = json.loads(text)
    assert len(text.encode()) <= 60_000
    assert (total, shown) == (2 * 150 * len(DOMAINS), sum(len(task["items"]) for task in content["tasks"]))
    assert len({len(task["items"]) for task in content["tasks"]}) == 1
    assert len(content["tasks"][0]["items"]) in ITEMS_A_TASK
    assert content["texts"][0].endswith("… [5 more characters]")
    assert next(row for row in content["pairs"].values() if row[0])[0][0] == 150


def test_models_without_items_are_named_not_fatal(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", made_up_trials(), items=3)
    best = next(trial for trial in made_up_trials() if trial.role == "base" and trial.split == "test")
    (run / "items" / f"{best.digest}-test.parquet").unlink()
    page = report([run])["report"].read_text()
    assert "Without items on disk, or left out: base of run." in page


def test_one_run_keeps_its_place_and_several_go_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = _run(tmp_path / "one", made_up_trials()), _run(tmp_path / "two", made_up_trials(seed=1))
    assert report([one])["report"] == one / "report.html"
    monkeypatch.chdir(tmp_path)
    assert report([one, two])["report"] == Path("report.html")
    page = report([one, two], out=tmp_path / "new" / "both.html")["report"].read_text()
    assert "<h1>2 runs: one, two</h1>" in page
    assert all(f"<h2>{title}</h2>" in page for title in ("Leaderboard", "Cost against quality", "Shape of each method"))


@pytest.mark.parametrize("case", ["missing", "empty folder", "no trials", "twice", "out is a folder"])
def test_wrong_folders_are_one_clear_line(case: str, tmp_path: Path) -> None:
    good = _run(tmp_path / "good", made_up_trials(2))
    (tmp_path / "empty").mkdir()
    arguments = {
        "missing": [str(good), str(tmp_path / "nothing")],
        "empty folder": [str(tmp_path / "empty")],
        "no trials": [str(tmp_path / "no trials")],
        "twice": [str(good), str(good)],
        "out is a folder": [str(good), "--out", str(tmp_path / "empty")],
    }[case]
    if case == "no trials":
        TrialStore(tmp_path / "no trials")._write([])
    result = CliRunner().invoke(app, ["report", *arguments])
    assert isinstance(result.exception, InputError)
    assert "\n" not in str(result.exception)
    assert not (good / "report.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [_run(tmp_path / name / "run", made_up_trials(2)) for name in ("a", "b")]
    names = [run.name for run in read_runs(folders)]
    assert len(set(names)) == 2


@pytest.mark.slow
def test_browser_compares_two_models_item_by_item(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, made_up_trials(seed=seed), items=30) for seed, name in enumerate(("one", "two"))]
    page = report(runs, out=tmp_path / "both.html")["report"]
    body = body_in_browser(page, tmp_path / "browser")
    drawn = len(re.findall(r'<div id="chart-\d+" class="plotly-graph-div js-plotly-plot"', body))
    assert drawn == len(re.findall(r'<div id="chart-\d+"', page.read_text())) >= 5
    assert re.search(r'id="paired"[^>]*>[^<]*A − B = [+−]0\.\d{3} ± 0\.\d{3} over 30 items that both answered', body)
    assert re.search(r'id="item-count"[^>]*>[^<]*30 of the 30 items of model A, page 1 of 2', body)
    assert body.count("<b>coding-test-") == 20


def test_runs_of_one_objective_are_ranked_by_it_and_what_misses_constraints_comes_last(tmp_path: Path) -> None:
    folders = [_run(tmp_path / str(seed), for_worst_domain(made_up_trials(seed=seed))) for seed in range(2)]
    rows = compare(read_runs(folders))
    values = [row.trial.objective.value for row in rows if row.place and not row.trial.missed]
    assert values == sorted(values, key=lambda value: -(value or 0.0))
    missing = [bool(row.trial.missed) for row in rows if row.place]
    assert missing == sorted(missing)
    table = list(csv.DictReader(io.StringIO(methods_csv(rows))))
    assert {line["objective"] for line in table} == {"worst_domain"}
    assert "safety >= 0.9" in {line["misses"] for line in table}
    assert "worst domain" in methods_markdown(rows)


def test_runs_that_searched_for_different_things_are_ranked_by_the_normalised_average_and_say_so(
    tmp_path: Path,
) -> None:
    one = _run(tmp_path / "a", made_up_trials())
    other = _run(tmp_path / "b", for_worst_domain(made_up_trials()))
    runs = read_runs([one, other])
    rows = compare(runs)
    values = [row.trial.normalised_average or 0.0 for row in rows if row.place]
    assert values == sorted(values, reverse=True)
    assert any("searched for different things" in line for line in reservations(runs, rows))
    assert "worst domain" not in methods_markdown(rows)
