"""A full disk ends a search with that reason, and with room again it goes on as if nothing had been: on a real one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError

from made_up_search import MadeUpScorer, MadeUpSearch
from mergebench_ray.config.sweep import SearchOptions
from mergebench_ray.errors import InputError
from mergebench_ray.files import is_full_disk
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.study import open_storage

OPTIONS = {"trials": 12, "race": {"kind": "pool", "survivors": 4}}


def begun(folder: Path) -> MadeUpSearch:
    """A search whose base and specialists are scored, study on disk included."""
    return MadeUpSearch(folder, MadeUpScorer(), OPTIONS, storage=open_storage(RunFolder(folder), SearchOptions()))


def taken(folder: Path) -> int:
    """Bytes of a folder's files, in whole pages."""
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*"))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes; what is yielded changes that."""

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")

    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda larger: mount("-o", f"remount,size={larger}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int, list[Any]]:
    """Bytes that a run takes at its start and at its end, and its table."""
    folder = tmp_path_factory.mktemp("calm")
    search, at_first = begun(folder), taken(folder)
    search.drive()
    return at_first, taken(folder), list(map(told, TrialStore(folder).trials()))


@pytest.mark.slow
@pytest.mark.parametrize(("share", "met_by"), [(0.0, StorageInternalError), (0.6, InputError)])
def test_a_search_goes_on_as_the_calm_one_after_its_disk_was_full(
    share: float, met_by: type[Exception], calm: tuple[int, int, list[Any]], tmp_path: Path
) -> None:
    at_first, at_last, expected = calm
    with small_disk(tmp_path / "run", 4 * at_last) as resize:
        search = begun(tmp_path / "run")
        resize(int((1 - share) * at_first + share * at_last))
        with pytest.raises(met_by) as raised:  # by the study's database, or by the store of trials
            search.drive()
        assert is_full_disk(raised.value)
        kept = TrialStore(tmp_path / "run").trials()
        resize(4 * at_last)
        begun(tmp_path / "run").drive()
        found = TrialStore(tmp_path / "run").trials()
        assert list(map(told, found)) == expected
        assert found[: len(kept)] == kept


def told(one: Trial) -> Any:
    """All that a row says but times and costs."""
    return one.role, one.name, one.number, one.parameters, dict(one.domains), dict(one.objectives), one.estimate
