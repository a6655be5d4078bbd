"""Code that lies beside a model or data set is never run: every call that could says so, here and in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FOLDERS = ["mergebench_ray", "benchmarks", "tests"]
LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "LLM", "pipeline"}
# They load settings or weights alone, and take no such argument.
WITHOUT_CODE = {"GenerationConfig.from_pretrained", "Group.from_config", "PeftModel.from_pretrained"}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_loader(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    return name in LOADERS and ast.unparse(call.func) not in WITHOUT_CODE


def trust(call: ast.Call) -> list[str]:
    return [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "trust_remote_code"]


def trusting(file: Path) -> Iterator[str]:
    """Calls that load code, or might."""
    for call in calls(ast.parse(file.read_text())):
        if (is_loader(call) and trust(call) != ["False"]) or trust(call) not in ([], ["False"]):
            yield f"{file.relative_to(REPOSITORY)}:{call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_loader_is_told_not_to_trust_code(folder: str) -> None:
    files = list((REPOSITORY / folder).rglob("*.py"))
    assert files
    assert [found for file in files for found in trusting(file)] == []


def test_the_check_finds_what_it_looks_for() -> None:
    found = calls(ast.parse("AutoModel.from_pretrained(x)\nvllm.LLM(m, trust_remote_code=True)\nopen(x)"))
    assert [(is_loader(call), trust(call)) for call in found] == [(True, []), (True, ["True"]), (False, [])]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "mergebench_ray").rglob("*.yaml")), ids=lambda file: file.name)
def test_no_task_asks_for_code(file: Path) -> None:
    assert "trust_remote_code: true" not in file.read_text().lower()
