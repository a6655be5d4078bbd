"""Imports as a whole; which room may import which is checked by `lint-imports`."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp
import pytest


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("mergebench_ray", cache_dir=None)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


@pytest.mark.parametrize("module", ["commands.tune", "search.scorer"])
def test_what_coordinates_actors_starts_without_the_models_of_transformers(module: str) -> None:
    slow = "transformers.models.auto", "transformers.modeling_utils", "vllm"
    program = f"import sys, mergebench_ray.{module}; print(*set({slow}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
