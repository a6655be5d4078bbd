"""Imports as a whole; which room may import which is checked by `lint-imports`."""

from __future__ import annotations

import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tiny_models import tiny_llama, tiny_specialist


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("mergebench_ray", cache_dir=None)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


@pytest.mark.slow
def test_what_coordinates_actors_starts_without_the_models_of_transformers() -> None:
    slow = "transformers.models.auto", "transformers.modeling_utils", "vllm"
    modules = "mergebench_ray.commands.tune", "mergebench_ray.search.scorer"
    program = f"import sys, {', '.join(modules)}; print(*set({slow}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.slow
def test_a_merge_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """Each of these takes as long to import as a small model takes to merge."""
    slow = "ray", "transformers", "vllm", "datasets", "pandas", "optuna", "lm_eval", "torch._dynamo"
    base = tiny_llama(tmp_path / "base")
    specialist = tiny_specialist(tmp_path / "math", base, seed=1)
    program = (
        "import sys\nfrom mergebench_ray import merge\nbase, specialist, out = sys.argv[1:]\n"
        "merge(method='model_soup', base=base, specialists={'math': specialist}, out=out)\n"
        f"print(*sorted(set({slow}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, base, specialist, tmp_path / "out"]
    environment = {**os.environ, "CXX": "no-such-compiler", "MERGEBENCH_RAY_CACHE": str(tmp_path / "cache")}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.split() == ["torch._dynamo"]  # of the eager pass, which no compiled kernel needs
