"""Methods that other packages bring."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.methods import get_method, method_names, method_source, registry

METHOD = """
from mergebench_ray.methods import register
from mergebench_ray.methods.model_soup import ModelSoup

@register
class Other(ModelSoup):
    name = "{name}"
    summary = "another average"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Module of an installed package that has one method."""
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (tmp_path / "other-1.0.dist-info" / "entry_points.txt").write_text(
        "[mergebench_ray.methods]\nother = other_methods\n"
    )
    method_names()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.syspath_prepend(tmp_path)
    registry._scan.cache_clear()
    yield tmp_path / "other_methods.py"
    sys.modules.pop("other_methods", None)


def test_the_method_of_an_installed_package_is_found(package: Path) -> None:
    package.write_text(METHOD.format(name="other"))
    assert get_method("other").summary == "another average"
    assert {"other", "ties"} <= set(method_names())
    first = method_source("other")
    package.write_text(METHOD.format(name="other") + "x = 1\n")
    assert method_source("ties") is None
    assert len({None, first, method_source("other")}) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (METHOD.format(name="ties"), "ValueError: method 'ties' is registered twice"),
    ],
)
def test_a_package_that_fails_is_left_out_with_one_line(
    package: Path, text: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    package.write_text(text)
    with caplog.at_level(logging.WARNING):
        names = method_names()
    assert "ties" in names
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"method other (other_methods) is left out: {reason}")
    assert "\n" not in message
    with pytest.raises(InputError, match="unknown method 'other'"):
        get_method("other")
