"""The API pages have everything that the package offers by name."""

from __future__ import annotations

from pathlib import Path

import mergebench_ray
from mergebench_ray import engines, methods

PAGES = Path(__file__).parents[2] / "docs" / "api"


def test_every_public_name_of_the_package_has_an_entry() -> None:
    entries = {line for page in PAGES.glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()}
    assert [name for name in mergebench_ray.__all__ if f"::: mergebench_ray.{name}" not in entries] == []


def test_what_authors_of_methods_and_transports_build_on_has_an_entry() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    assert [name for name in methods.__all__ if f"::: mergebench_ray.methods.{name}\n" not in text] == []
    assert [name for name in engines.__all__ if f"::: mergebench_ray.engines.{name}\n" not in text] == []
