"""What is said of this machine is what a process can use of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mergebench_ray import machine


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, (80, 40)), ("1", (40,)), ("GPU-bb", (40,)), ("GPU-bb22, GPU-aa11", (40, 80)), ("", ()), ("7", ())],
)
def test_gpus_are_those_that_this_process_may_use_by_number_or_name(
    visible: str | None, expected: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-aa11, 80'\necho 'GPU-bb22, 40'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_memory() == tuple(one << 20 for one in expected)


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
