"""The page about adding a method is true: its example, saved where it says, is a method like any other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


class Tree(NamedTuple):
    """A copy of this repository."""

    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """With the page's first block saved as the method, and its last added to the references."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("mergebench_ray", "tests", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    method, reference = re.findall(r"(?:Saved as|goes to) `(\S+\.py)`", PAGE)[:2]
    (folder / method).write_text(CODE[0])
    with (folder / reference).open("a") as references:
        references.write(f"\n\n{CODE[-1]}")
    return Tree(folder)


def test_the_page_has_the_file_its_use_and_its_reference(tree: Tree) -> None:
    assert len(CODE) == 3
    done = tree.run("-c", CODE[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_passes_what_runs_over_all_methods(tree: Tree) -> None:
    conformance = ["tests/methods/test_methods_reference.py", "tests/kernels/test_kernels_passes.py"]
    others = [
        "tests/bank/test_bank_shards.py",
        "tests/methods/test_methods_parameters.py",
        "tests/config/test_sweeps.py",
    ]
    chosen = "sign_majority or complete_to_themselves or all_methods"
    done = tree.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *conformance, *others, "-k", chosen)
    assert done.returncode == 0, done.stdout
    # Its reference, two models, compiled against eager, shards; then what is said of all methods at once.
    assert re.search(r"^7 passed", done.stdout, flags=re.MULTILINE), done.stdout
