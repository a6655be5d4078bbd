"""References to models: hub names, folders, packages, revisions and adapters."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "owner/name",
        "owner/name@main",
        "./folder",
        "/a/b",
        "package:p/x.gguf",
        "owner/name@v1+./adapter",
        "base+package:p/a",
    ],
)
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(ModelRef.parse(text)) == text


def test_an_at_sign_in_a_path_is_not_a_revision() -> None:
    assert ModelRef.parse("./models@home").revision is None


def test_plus_and_at_may_be_part_of_paths_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "base@1", "a", "c+d@e", "owner/m@v"):
        (tmp_path / name).mkdir(parents=True)
    for text, expected in [
        ("a+b", ("a+b", None, None)),
        (f"{tmp_path}/a+b", (f"{tmp_path}/a+b", None, None)),
        ("base@1", ("base@1", None, None)),
        ("owner/m@v", ("owner/m@v", None, None)),
        ("owner/m@w", ("owner/m", "w", None)),
        ("a+b+c+d@e", ("a+b", None, "c+d@e")),
        ("a+c+d@e", ("a", None, "c+d@e")),
        ("owner/hub@main+c+d@e", ("owner/hub", "main", "c+d@e")),
        ("a+b+./nowhere", ("a+b", None, "./nowhere")),
    ]:
        ref = ModelRef.parse(text)
        assert (ref.source, ref.revision, ref.adapter and ref.adapter.source) == expected
        assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["~nobody-here/x", "x" * 5000, "./" + "a+" * 5000 + "b", "a\0b"])
def test_what_cannot_be_a_path_is_no_traceback(text: str) -> None:
    with contextlib.suppress(InputError):
        ModelRef.parse(text)


@pytest.mark.parametrize("text", ["", "+", "a+", "+b", "a+b+c", "@x", "owner/name@"])
def test_a_reference_with_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="model reference"):
        ModelRef.parse(text)


def test_a_path_is_never_taken_for_a_hub_id() -> None:
    assert ModelRef.parse(Path("models/base")).source == "./models/base"
    assert ModelRef.parse(Path("/models/base")).source == "/models/base"
    assert ModelRef.parse(Path("~/base")).source == "~/base"
    assert ModelRef.parse("models/base").source == "models/base"
