"""The notebook of the documentation runs, and is shown as it ran; what is under way is one output that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from made_up_run import write_run
from made_up_trials import made_up_trials, raced

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
LIVE = """
import sys
sys.path.append({support!r})
from made_up_trials import made_up_trials
from mergebench_ray.commands.live import LiveView
with LiveView("a <run>", 4, show=None) as view:
    view.phase("starting")
    view.note("a <note>")
    view.trial_finished(made_up_trials()[9], made_up_trials()[9])
"""
FINISHED = LIVE + "    view.finished(['best: <x>'])"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, and cells that show a live view, in a folder with a run."""
    folder = tmp_path_factory.mktemp("notebook")
    write_run(folder / "runs" / "quickstart", raced(made_up_trials()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    support = str(ROOT / "tests" / "support")
    notebook.cells += [new_code_cell(text.format(support=support)) for text in (LIVE, FINISHED)]
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def html_of(cell: Any) -> list[str]:
    return [output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})]


@pytest.mark.slow
def test_every_cell_runs_and_shows_something(executed: Any) -> None:
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert "<table" in html_of(cells[0])[0]
    assert sum("application/vnd.plotly.v1+json" in str(cell.outputs) for cell in cells) == 2
    assert "All keys matched" in str(cells[-3].outputs)


@pytest.mark.slow
def test_a_search_that_is_under_way_is_one_output_that_changes(executed: Any) -> None:
    live, finished = executed.cells[-2:]
    (shown,) = html_of(live)
    assert len(live.outputs) == 1
    assert "a &lt;run&gt;" in shown
    assert "best so far" in shown
    assert "a &lt;note&gt;" in shown
    (shown,) = html_of(finished)
    assert shown == "<pre>note: a &lt;note&gt;\nbest: &lt;x&gt;</pre>"


def test_the_notebook_is_shown_as_it_ran() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert "/home/" not in NOTEBOOK.read_text() and "/tmp/" not in NOTEBOOK.read_text()  # noqa: PT018
