"""Whole sweeps in the documentation are sweeps, and parts of one are parts of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergebench_ray.config import Sweep

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LEAST = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {"density": {"low": 0.1, "high": 0.9}}}}


def sweeps(page: Path) -> list[dict[str, Any]]:
    """The YAML blocks of a page whose keys are those of a sweep, completed by what a sweep needs at least."""
    found = [yaml.safe_load(text) for text in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [{**LEAST, **content} for content in found if content.keys() <= Sweep.model_fields.keys()]


@pytest.mark.parametrize("page", [page for page in PAGES if sweeps(page)], ids=lambda page: page.name)
def test_every_sweep_of_a_page_is_one(page: Path) -> None:
    for content in sweeps(page):
        Sweep.model_validate(content)
