"""Code that lies beside a model or data set is never run: every call that could says so, here and in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FILES = [file for folder in ("mergebench_ray", "benchmarks", "tests") for file in (REPOSITORY / folder).rglob("*.py")]
LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "LLM", "pipeline"}
# They load settings or weights alone, and take no such argument.
WITHOUT_CODE = {"GenerationConfig.from_pretrained", "PeftModel.from_pretrained"}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_loader(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    return name.rpartition(".")[2] in LOADERS and name not in WITHOUT_CODE


def trust(call: ast.Call) -> list[str]:
    return [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "trust_remote_code"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_every_loader_is_told_not_to_trust_code(file: Path) -> None:
    for call in calls(ast.parse(file.read_text())):
        assert not is_loader(call) or trust(call) == ["False"], f"line {call.lineno}: {ast.unparse(call)}"
        assert trust(call) in ([], ["False"]), f"line {call.lineno}: {ast.unparse(call)}"


def test_the_check_finds_what_it_looks_for() -> None:
    found = calls(ast.parse("AutoModel.from_pretrained(x)\nvllm.LLM(m, trust_remote_code=True)\nopen(x)"))
    assert [(is_loader(call), trust(call)) for call in found] == [(True, []), (True, ["True"]), (False, [])]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "mergebench_ray").rglob("*.yaml")), ids=lambda file: file.name)
def test_no_task_asks_for_code(file: Path) -> None:
    assert "trust_remote_code: true" not in file.read_text().lower()
