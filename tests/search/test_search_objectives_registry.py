"""Objectives that other packages bring."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.objectives import registry
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.registry import check_objective, make_objective, objective_names

OBJECTIVE = """
from mergebench_ray.search.objectives.registry import register

@register
class Spread:
    name = "{name}"
    direction = "minimize"

    def __init__(self, references):
        self.references = {{}}

    def value(self, scores):
        return max(scores.values()) - min(scores.values())

    def slopes(self, scores):
        return {{max(scores, key=scores.get): 1.0, min(scores, key=scores.get): -1.0}}

    def reference_slopes(self, scores):
        return {{}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Module of an installed package that has one objective."""
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (tmp_path / "other-1.0.dist-info" / "entry_points.txt").write_text(
        "[mergebench_ray.objectives]\nother = other_objectives\n"
    )
    objective_names()
    monkeypatch.setattr(registry, "_objectives", dict(registry._objectives))
    monkeypatch.syspath_prepend(tmp_path)
    registry._scan.cache_clear()
    yield tmp_path / "other_objectives.py"
    sys.modules.pop("other_objectives", None)


def test_the_objective_of_an_installed_package_is_found(package: Path) -> None:
    package.write_text(OBJECTIVE.format(name="spread"))
    check_objective("spread", ["math"], "search.objective")
    objective = make_objective("spread", References({"math": DomainScore(0.5, 0.1, 4)}))
    assert (objective.direction, objective.value({"math": 0.2, "coding": 0.5})) == ("minimize", pytest.approx(0.3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (OBJECTIVE.format(name="worst_domain"), "ValueError: objective 'worst_domain' is registered twice"),
    ],
)
def test_a_package_that_fails_is_left_out_with_one_line(
    package: Path, text: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    package.write_text(text)
    with caplog.at_level(logging.WARNING):
        names = objective_names()
    assert "worst_domain" in names
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"objective other (other_objectives) is left out: {reason}")
    assert "\n" not in message
    with pytest.raises(InputError, match="'other': no such objective"):
        check_objective("other", ["math"], "search.objective")
