"""What is said of this machine is what a process can use of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mergebench_ray import machine


@pytest.mark.parametrize(("limit", "expected"), [("1000", 1000 - 900 + 300), ("max", None), (None, None)])
def test_memory_is_what_the_control_group_leaves_with_what_its_files_have_cached(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("900\n")
        (tmp_path / "memory.stat").write_text("anon 600\nactive_file 100\ninactive_file 200\n")
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    found = machine.available_memory()
    if expected is not None:
        assert found == expected
    else:
        assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)
