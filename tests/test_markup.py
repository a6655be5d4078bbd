"""Names stay names, whatever is printed."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from made_up_trials import made_up_trials
from mergebench_ray.commands.live import LiveView
from mergebench_ray.commands.report import report
from mergebench_ray.markup import csv_text, markdown_text, terminal_text
from mergebench_ray.report.method_table import methods_csv, methods_markdown
from mergebench_ray.report.terminal_table import terminal_table
from mergebench_ray.runs.comparison import Run, compare
from mergebench_ray.runs.trial_store import TrialStore

HOSTILE = [
    "=HYPERLINK(1)",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "[red]",
    "[/nothing]",
    "a|b",
    "<script>alert(1)</script>",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_every_form_of_the_leaderboard(name: str, tmp_path: Path) -> None:
    trials = [replace(trial, name=name) if trial.role == "reference" else trial for trial in made_up_trials(1)]
    trials = [replace(t, domains={(name if d == "math" else d): r for d, r in t.domains.items()}) for t in trials]
    store = TrialStore(tmp_path / "run")
    for trial in trials:
        store.append(trial)
    rows = compare([Run.read(tmp_path / "run")])
    cells = [cell for row in csv.reader(io.StringIO(methods_csv(rows), newline="")) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and not _is_number(cell)]
    assert any(name.strip() in cell for cell in cells)
    lines = methods_markdown(rows).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    console = Console(file=io.StringIO(), width=400)
    console.print(terminal_table(rows))
    with LiveView(name, 1, console=console) as view:
        view.phase(name)
    assert name.strip() in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_name_is_no_script_on_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    store = TrialStore(tmp_path)
    for trial in made_up_trials(2):
        store.append(replace(trial, name=name, method=name) if trial.role == "candidate" else trial)
    page = report([tmp_path])["report"].read_text()
    assert "alert(1)" in page
    assert name not in page
    assert "<script>alert" not in page


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_negative_numbers_stay_numbers(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "run")
    for trial in made_up_trials(1):
        store.append(replace(trial, normalised_average=-0.25) if trial.role == "candidate" else trial)
    report([tmp_path / "run"], csv=tmp_path / "t.csv")
    assert any(row["normalised_average"] == "-0.25" for row in csv.DictReader((tmp_path / "t.csv").open()))


def test_markup_means_nothing() -> None:
    assert csv_text("=1") == "'=1"
    assert csv_text("a=1") == "a=1"
    assert terminal_text("[red]\x1b[31mx[/]").plain == "[red] [31mx[/]"
    assert markdown_text("a|b\n<i> [x](y) *z* task_arithmetic _a_ \\") == (
        "a\\|b \\<i\\> \\[x\\](y) \\*z\\* task_arithmetic \\_a\\_ \\\\"
    )
