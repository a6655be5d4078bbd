"""The tutorial is true: its files and commands, in their order, lead from five models to a merge to be published.

So is the page about Python, whose snippets follow each other, in a folder in which the tutorial was followed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import tiny_llama, tiny_specialist

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
DOMAINS = ["math", "coding", "french", "law", "medicine"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page was followed with tiny models."""
    folder = tmp_path_factory.mktemp("tutorial")
    base = tiny_llama(folder / "models" / "base")
    for seed, domain in enumerate(DOMAINS):
        tiny_specialist(folder / "models" / domain, base, seed=seed, scale=0.5)
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            (folder / title).parent.mkdir(exist_ok=True)
            (folder / title).write_text(text, encoding="utf-8")
        elif command := {"bash": ["bash", "-e", "-c", text], "python": [sys.executable, "-c", text]}.get(language):
            follow(command, folder)
    return folder


def follow(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.vllm
@pytest.mark.apart
@pytest.mark.timeout(1800)
def test_the_search_of_the_tutorial_ends_with_a_model_a_card_and_a_report(workplace: Path) -> None:
    best = workplace / "runs" / "first" / "best"
    recipe = (best / "recipe.yaml").read_text()
    card = (best / "model" / "README.md").read_text()
    assert all(domain in recipe and domain in card for domain in DOMAINS)
    assert (workplace / "first.html").exists()
    assert "plain average" in (workplace / "first.md").read_text()


@pytest.mark.vllm
@pytest.mark.apart
@pytest.mark.timeout(1800)
def test_the_snippets_about_python_follow_each_other_from_a_search_in_the_background(workplace: Path) -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    snippets = [text for language, _, text in BLOCK.findall(page) if language == "python"]
    said = follow([sys.executable, "-c", "\n".join(snippets)], workplace)
    assert "python: under way" in said or "first: under way" in said
    assert str(Path("runs", "first", "best", "model")) in said
    assert (workplace / "search.html").stat().st_size > 100_000


def test_the_tutorials_commands_are_all_run_but_for_installing_and_uploading() -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    left_out = [line for language, _, text in blocks if language == "console" for line in text.splitlines()]
    assert all(re.match(r"\$ (pip install|mergebench-ray doctor|mergebench-ray push|hf )", line) for line in left_out)
