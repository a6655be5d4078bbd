"""The cache folder and its locks."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
from pathlib import Path

import pytest

from mergebench_ray.cache import cache_folder, one_at_a_time

SPAWN = multiprocessing.get_context("spawn")


def hold(lock: Path, held: multiprocessing.synchronize.Event) -> None:
    with one_at_a_time(lock):
        held.set()
        SPAWN.Event().wait()


def test_a_killed_process_and_the_file_it_left_block_nobody(tmp_path: Path) -> None:
    lock, held = tmp_path / "one.lock", SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(lock, held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    assert lock.exists()
    with one_at_a_time(lock):
        pass


def test_an_empty_setting_means_the_usual_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", "")
    assert cache_folder("part") == tmp_path / ".cache" / "mergebench_ray" / "part"
