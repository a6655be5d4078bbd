"""A merge in windows as Ray tasks writes the files of one in threads, also where tasks are lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from bank_in_process import files_of, merge_streamed
from mergebench_ray.bank import StreamedBank, transforms
from mergebench_ray.bank.calls import RayCalls, ThreadCalls
from mergebench_ray.bank.window_worker import WindowWorker
from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.merge import merge
from mergebench_ray.errors import InputError
from mergebench_ray.methods.della import RowRanks
from mergebench_ray.methods.statistics import transform_bytes
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("ray_cluster", "without_compiler")


@contextmanager
def sent_whole(module: ModuleType) -> Iterator[None]:
    """Have Ray send what a module defines, which its workers cannot import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


class DyingWorker(WindowWorker):
    """Dies once in the middle of a merge, when something is written already."""

    mark: Path

    def merge(self, work: Any, indices: Mapping[tuple[str, int], int], files: Any, run: Any) -> None:
        super().merge(work, indices, files, run)
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def test_files_are_those_of_threads_and_a_lost_task_is_done_again(tmp_path: Path) -> None:
    base = resolve(str(tiny_llama(tmp_path / "base", tied=False)))
    specialists = {n: resolve(str(tiny_specialist(tmp_path / n, base.folder, seed=i))) for i, n in enumerate("ab")}
    DyingWorker.mark = tmp_path / "died"
    merge_streamed(tmp_path / "threads", base, specialists, "ties", {})
    with sent_whole(sys.modules[__name__]), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))  # so that tasks have digests to make
        patch.setattr("mergebench_ray.bank.streamed.WindowWorker", DyingWorker)
        merge_streamed(tmp_path / "tasks", base, specialists, "ties", {}, calls=RayCalls(), window=20_000)
    assert (tmp_path / "died").exists()
    assert files_of(tmp_path / "tasks") == files_of(tmp_path / "threads")


def test_an_input_error_of_a_task_arrives_as_itself(tmp_path: Path) -> None:
    base = resolve(str(tiny_llama(tmp_path / "base")))
    specialist = resolve(str(tiny_specialist(tmp_path / "a", base.folder, seed=1)))
    file = specialist.folder / "model.safetensors"
    file.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors: was changed while it was in use"):
        merge_streamed(tmp_path / "out", base, {"a": specialist}, "model_soup", {}, calls=RayCalls())
    assert not (tmp_path / "out").exists()


def test_a_merge_beside_a_cluster_is_made_of_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, a = tiny_llama(tmp_path / "base"), tmp_path / "a"
    request: dict[str, Any] = {
        "method": "dare",
        "base": str(base),
        "specialists": {"a": str(tiny_specialist(a, base, seed=1))},
    }
    merge(**request, out=tmp_path / "on_cluster")
    monkeypatch.setattr("mergebench_ray.commands.merge.connected_ray", lambda: None)
    merge(**request, out=tmp_path / "here")
    assert files_of(tmp_path / "on_cluster") == files_of(tmp_path / "here")


def test_nodes_that_see_the_folder_can_write_there(tmp_path: Path) -> None:
    assert RayCalls.can_write(tmp_path)


def test_a_cluster_whose_cores_are_all_taken_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergebench_ray.bank.calls._ROOM_SECONDS", 1)
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(taken.ready(), timeout=60)
    try:
        assert not RayCalls.can_write(tmp_path)
    finally:
        remove_placement_group(taken)


def test_tasks_that_transform_ask_for_memory_and_more_than_there_is_is_left_to_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mergebench_ray.bank.calls._ROOM_SECONDS", 5)
    there = int(ray.cluster_resources()["memory"])
    assert isinstance(transforms._calls(tmp_path, there // 4), RayCalls)
    assert isinstance(transforms._calls(tmp_path, 2 * there), ThreadCalls)
    base = resolve(str(tiny_llama(tmp_path / "base")))
    specialists = {n: resolve(str(tiny_specialist(tmp_path / n, base.folder, seed=i))) for i, n in enumerate("ab")}
    asked: list[int] = []

    def ask(num_bytes: int) -> dict[str, int]:
        asked.append(num_bytes)
        return {"memory": num_bytes}

    monkeypatch.setattr("mergebench_ray.bank.calls._memory", ask)
    bank = StreamedBank(base, specialists)
    bank.transformed(RowRanks())
    assert max(asked) == transform_bytes(max(tensor.count for tensor in bank.layout.merged), 2)
    assert transform_bytes(1, 10) > transform_bytes(1, 2)
