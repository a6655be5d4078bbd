"""A merge in windows writes the bank's files, reads nothing twice without need, and leaves nothing half done."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bank_in_process import LocalBank, files_of, merge_streamed, write_from_bank
from mergebench_ray.bank import Layout, StreamedBank, inner_products, window_worker
from mergebench_ray.bank.calls import _called, _may_write
from mergebench_ray.bank.layout import LayoutTensor
from mergebench_ray.bank.windows import window_runs
from mergebench_ray.checkpoints import Checkpoint, TensorFiles, resolve
from mergebench_ray.checkpoints.read_once import ReadOnce
from mergebench_ray.errors import InputError
from mergebench_ray.methods import get_method, method_names, parse_parameters
from mergebench_ray.progress import Meter
from small_disks import small_disk
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

Models = tuple[Checkpoint, dict[str, Checkpoint]]
WINDOW = 1000  # entries: most tensors of the tiny models take several

PARAMETERS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scaling_coef": {"a": [0.1, 0.7], "b": 0.4, "c": [0.9, -0.3]}},
    "ties": {"density": 0.6, "merge_func": "mean"},
    "dare": {"p": 0.7, "seed": 11},
    "ram_plus": {"epsilon": 0.004},
    "sce": {"select_topk": 0.3},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1, "rescale": True},
}
DATA_FREE = [name for name in method_names() if not get_method(name).calibration_samples(parse_parameters(name, {}))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """An untied base, a specialist with further rows, one in fp32, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", tied=False)
    a = tiny_specialist(folder / "a", base, seed=0, extra_vocabulary=3)
    b = tiny_specialist(folder / "b", tiny_llama(folder / "wide", tied=False, dtype="float32"), seed=1)
    c = f"{base}+{tiny_adapter(folder / 'c', base, seed=9)}"
    return resolve(str(base)), {name: resolve(str(one)) for name, one in {"a": a, "b": b, "c": c}.items()}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("method", DATA_FREE)
def test_files_are_those_of_the_bank(models: Models, tmp_path: Path, method: str) -> None:
    parameters, (base, specialists) = PARAMETERS.get(method, {}), models
    some = {name: specialists[name] for name in get_method(method).Parameters.as_many(sorted(specialists))}
    merge_streamed(tmp_path / "streamed", base, some, method, parameters, window=WINDOW, threads=3)
    write_from_bank(tmp_path / "bank", base, some, method, parameters)
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "bank")


def test_inner_products_of_many_blocks_are_one_wherever_tensors_are_cut(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LocalBank(*models).bank.statistics.inner_products()
    for module in (inner_products, window_worker):
        monkeypatch.setattr(module, "INNER_PRODUCT_BLOCK", 96)
    found = [LocalBank(*models, shards=shards).bank.statistics.inner_products() for shards in (1, 7)]
    found += [StreamedBank(*models, window=window, threads=2).inner_products() for window in (100, WINDOW)]
    assert all(one == found[0] for one in found)
    assert found[0].keys() == whole.keys()
    assert all(torch.allclose(torch.tensor(found[0][name]), torch.tensor(one)) for name, one in whole.items())


@pytest.mark.usefixtures("empty_cache")
def test_the_digest_is_made_of_the_bytes_that_the_merge_reads(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[tuple[Path, int]] = Counter()
    preadv = os.preadv

    def count(descriptor: int, buffers: Any, position: int) -> int:
        got = preadv(descriptor, buffers, position)
        read[Path(os.readlink(f"/proc/self/fd/{descriptor}"))] += got
        return got

    base, specialists = models
    folders = {name: one for name, one in specialists.items() if name != "c"}
    monkeypatch.setattr(os, "preadv", count)
    bank = merge_streamed(tmp_path / "out", base, folders, "task_arithmetic", {}, window=WINDOW)
    for model in (base, *folders.values()):
        file = next(iter(model.tensors.values())).file
        assert read[file] == sum(info.num_bytes for info in model.tensors.values())
    read.clear()
    recipe = bank.recipe("task_arithmetic", {})
    assert not read
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "other"))
    assert recipe.base_digest == base.digest()
    assert recipe.specialist_digests == {name: one.digest() for name, one in folders.items()}


@pytest.mark.usefixtures("empty_cache")
def test_a_digest_is_right_in_whatever_order_bytes_are_read(models: Models) -> None:
    model = models[1]["a"]
    seen = ReadOnce(model)  # type: ignore[arg-type]
    name = max(seen.tensors, key=lambda name: seen.tensors[name].numel)
    for start, count in [(500, 700), (0, 300), (100, 500), (600, 10), (550, 100)]:
        seen.read(name, start, count)
    for left in seen.unread():
        seen.read_rest(left)
    seen.remember()
    assert seen.is_known
    remembered = seen.digest()
    assert remembered == model.digest()


def test_windows_cover_the_order_and_each_tensor_is_for_one_thread(models: Models) -> None:
    layout = Layout.of(models[0])
    for entries in (100, 5_000, 1 << 22):
        runs = window_runs(layout.merged, entries)
        windows = sorted((window for run in runs for window in run), key=lambda window: window.start)
        assert [window.start for window in windows[1:]] == [window.start + window.size for window in windows[:-1]]
        assert sum(window.size for window in windows) == layout.size
        assert max(window.size for window in windows) <= entries
        owners = [{overlap.tensor.name for window in run for overlap in window.overlaps} for run in runs]
        assert sum(map(len, owners)) == len(set.union(*owners))


def test_parts_of_a_huge_tensor_stay_with_one_thread_and_gaps_are_left_out() -> None:
    parts = [LayoutTensor("huge", (250,), 0, "other", i, 100 * i, count) for i, count in enumerate((100, 100, 50))]
    after = LayoutTensor("after", (10,), 0, "other", 0, 300, 10)
    runs = window_runs([*parts, after], 60)
    assert [[window.size for window in run] for run in runs] == [[60, 40, 60, 40, 50], [10]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
@pytest.mark.usefixtures("empty_cache")
def test_a_weight_that_is_not_finite_is_refused_by_name(
    models: Models, tmp_path: Path, value: float, name: str
) -> None:
    base, specialists = models
    broken = tiny_specialist(tmp_path / "broken", base.folder, seed=3)
    tensors = load_file(broken / "model.safetensors")
    tensors[name][0, 0] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"broken.*{name}.*NaN or infinity"):
        merge_streamed(tmp_path / "out", base, {**specialists, "b": resolve(str(broken))}, "ties", {})
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile_ends_the_merge_and_leaves_nothing(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = models
    changing = tiny_specialist(tmp_path / "changing", base.folder, seed=3)

    total = StreamedBank.total

    def change_first(*arguments: Any) -> int:
        file = changing / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-2:] = b"\0\0"
        file.write_bytes(content)
        return total(*arguments)

    monkeypatch.setattr(StreamedBank, "total", change_first)
    with pytest.raises(InputError, match=r"changing.*was changed while it was in use") as caught:
        merge_streamed(tmp_path / "out", base, {"b": resolve(str(changing))}, "ties", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_a_full_disk_ends_the_merge_in_one_line_before_anything_is_read(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedBank, "merge", lambda *_: pytest.fail("it was begun"))
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        with pytest.raises(InputError, match="no space left on the disk") as caught:
            merge_streamed(disk / "out", *models, "model_soup", {})
        assert not list(disk.iterdir())
    assert "\n" not in str(caught.value)


def test_an_interrupt_stops_the_threads_and_leaves_nothing(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_meter: Meter) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_streamed(tmp_path / "out", *models, "model_soup", {})
    assert not list(tmp_path.iterdir())


def test_coefficients_that_give_infinity_are_refused(models: Models, tmp_path: Path) -> None:
    base, _ = models
    far = tiny_specialist(tmp_path / "far", base.folder, seed=3)
    tensors = load_file(far / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.finfo(torch.bfloat16).max / 2)
    save_file(tensors, far / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight.*choose smaller coefficients"):
        merge_streamed(tmp_path / "out", base, {"b": resolve(str(far))}, "task_arithmetic", {"scaling_coef": 3.0})


def test_what_is_held_does_not_depend_on_the_size_of_the_models(models: Models, tmp_path: Path) -> None:
    bank = merge_streamed(tmp_path / "out", *models, "task_arithmetic", {}, threads=2, window=WINDOW)
    buffers = bank._worker._buffers
    held = [buffers.get() for _ in range(buffers.qsize())]
    assert 1 <= len(held) <= 2
    assert all(buffer.shape[1] < 2 * WINDOW < bank.layout.size for buffer in held)


class OneTask:
    """Writes and is sure that it is done, as a worker in a task on another node."""

    def write(self, files: TensorFiles) -> int:
        return files.write("weight", 0, torch.ones(8))

    def hashed(self) -> list[tuple[int, str, str]]:
        return []


def test_what_a_task_has_written_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    with TensorFiles(tmp_path, {"weight": ((8,), torch.bfloat16)}, 1 << 20) as files:
        worker: Any = OneTask()
        _called(worker, "write", pickle.loads(pickle.dumps(files)))
        [file] = tmp_path.glob("*.safetensors")
        assert on_disk == [file.stat().st_ino], "or what a lost node had in memory would stay zeros in the model"


def test_a_folder_that_a_node_may_only_read_is_not_written_by_tasks(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        (disk / "probe").touch()
        assert _may_write(str(disk / "probe"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert not _may_write(str(disk / "probe"))
    assert not _may_write(str(tmp_path / "missing"))
