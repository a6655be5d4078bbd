"""The architecture page speaks of what is there: its walks name files that exist, its table names every room."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import mergebench_ray

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(mergebench_ray.__file__).parent


def walk(title: str) -> list[str]:
    section = PAGE.split(f"## The walk of a {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


@pytest.mark.parametrize(("title", "most"), [("coefficient", 30), ("tensor", 20)])
def test_a_walk_passes_few_files_and_all_of_them_exist(title: str, most: int) -> None:
    files = walk(title)
    assert 10 < len(files) <= most
    assert [file for file in files if not (PACKAGE / file).is_file()] == []


def test_the_table_has_every_room_in_the_order_that_imports_are_held_to() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    rooms = [name for layer in layers for name in re.findall(r"\w+", layer) if (PACKAGE / name).is_dir()]
    assert rooms == re.findall(r"^\| (?:`cli.py`, )?`(\w+)/`", PAGE, re.MULTILINE)
    assert sorted(rooms) == sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
