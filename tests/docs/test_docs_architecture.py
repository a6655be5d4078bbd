"""The architecture page speaks of what is there: its walks name files that exist, its table names every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mergebench_ray

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(mergebench_ray.__file__).parent


def walk(title: str) -> list[str]:
    section = PAGE.split(f"## The walk of a {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


@pytest.mark.parametrize(("title", "most"), [("coefficient", 30), ("tensor", 20)])
def test_a_walk_passes_few_files_and_all_of_them_exist(title: str, most: int) -> None:
    files = walk(title)
    assert 10 < len(files) <= most
    assert [file for file in files if not (PACKAGE / file).is_file()] == []


def test_every_room_is_in_the_table() -> None:
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`(\w+)/`", PAGE.split("## Rooms\n")[1].split("\n## ")[0]))
