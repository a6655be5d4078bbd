"""The example of the page about suites is a suite: its files are read, its items are as written, its command passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import CommandLine
from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS
from mergebench_ray.tasks.loading import load_tasks

PAGE = Path(__file__).parents[2] / "docs" / "suites.md"
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^```bash\nmergebench-ray (.*?)\n```$", re.MULTILINE)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files."""
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_suite_is_read_and_divides_its_items(workplace: Path) -> None:
    suite = Suite.load("mine.yaml")
    options = EvaluationOptions(data={"allenai/ai2_arc:ARC-Easy": "data/arc"})
    items = {(split, task.name): len(task.items) for split in DATA_SPLITS for task in load_tasks(suite, split, options)}
    assert items["validation", "my_science"] + items["test", "my_science"] == 6
    assert items["validation", "my_units"] + items["test", "my_units"] == 6
    assert items["validation", "arc_easy"] == items["test", "arc_easy"] == 1
    assert all(items.values()), "both splits need items"


def test_the_derived_suite_has_the_tasks_of_both(workplace: Path) -> None:
    suite = Suite.load("mini-and-science.yaml")
    assert [*suite.domains] == ["instruction", "math", "multilingual", "safety", "science"]
    assert sorted(suite.specialists) == sorted(suite.domains)
    found = load_tasks(suite, "validation", EvaluationOptions(), ["science", "math"])
    assert {task.name for task in found} == {"my_science", "mini_math"}


def test_the_pages_command_passes(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = COMMAND.findall(PAGE.read_text(encoding="utf-8"))
    finished = CommandLine(capsys, monkeypatch)(*command.split())
    assert finished.status == 0, finished
