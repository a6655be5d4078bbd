"""What a shard prepares for a GPU, as far as it can be seen without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bank_in_process import LocalBank
from mergebench_ray.bank import Layout
from mergebench_ray.bank.output import Output
from mergebench_ray.bank.shard import BankShard, NoLongerHeldError
from mergebench_ray.checkpoints import resolve
from mergebench_ray.kernels import passes
from mergebench_ray.kernels.forms import ALIGNMENT, Form
from mergebench_ray.kernels.passes import Pass
from mergebench_ray.weights.memory_file import MemoryFile, pin
from tiny_models import tiny_llama, tiny_specialist


@pytest.mark.parametrize("count", [1, 3, 7])
def test_task_vectors_begin_where_a_gpu_reads_wide_whatever_the_shards(count: int, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "base")
    base = resolve(str(model))
    specialists = {name: resolve(str(tiny_specialist(tmp_path / name, model, seed=i))) for i, name in enumerate("abc")}
    layout = Layout.of(base, specialists.values())
    for index in range(count):
        shard = BankShard(base, specialists, layout, index, count, 1, False)
        assert [vector.data_ptr() % ALIGNMENT for vector in shard._vectors()] == [0] * 3
        assert Form.ALIGNED.arrays([shard._base, *shard._vectors()]) is not None
        shard.close()


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("method", ["dare", "ties", "localize_and_stitch"])
def test_a_pass_that_brings_what_it_reads_a_window_at_a_time_writes_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU all is where it is read already: only that is made up.
    model = tiny_llama(tmp_path / "base")
    base = resolve(str(model))
    specialists = {name: resolve(str(tiny_specialist(tmp_path / name, model, seed=i))) for i, name in enumerate("abc")}
    parameters = {"dare": {"p": 0.5}, "ties": {"scaling_coef": {"a": [0.3, 0.7], "b": 0.2, "c": 0.1}}}.get(method, {})
    expected = LocalBank(base, specialists, shards=3).merge(method, parameters)
    brought: list[int] = []
    bring = Pass._brought

    def noted(*given: Any) -> Iterator[Any]:
        for entries, window in bring(*given):
            brought.append(len(entries[0]))
            yield entries, window

    monkeypatch.setattr(passes, "BROUGHT_WINDOW", 96)
    monkeypatch.setattr(Pass, "_brought", noted)
    monkeypatch.setattr(Pass, "_is_elsewhere", lambda *_: True)
    found = LocalBank(base, specialists, shards=3).merge(method, parameters)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected)
    assert max(brought) == 96
    assert len(brought) > 100


@pytest.mark.parametrize("status", [0, 2])
def test_memory_that_cannot_be_pinned_is_said_and_its_error_forgotten(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no CUDA here: this stands for its answer.
    launched: list[object] = []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: status))
    memory = torch.ones(4)
    monkeypatch.setattr(torch, "zeros", lambda *_, **options: launched.append(options["device"]))
    problem = pin(memory)
    assert (problem is None, launched) == ((True, []) if status == 0 else (False, ["cuda"]))
    assert status == 0 or "(CUDA error 2): copies from the GPU are slower" in str(problem)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    """Eight parameters with memory of a device beside that of the host, as on a GPU."""
    made, device = Output(8, torch.device("cpu")), MemoryFile(8)
    monkeypatch.setattr(made, "_memory", device)
    yield made
    device.close()
    made.close()


def in_a_thread(output: Output, value: float, *ranges: tuple[int, int]) -> None:
    """Merge, as a shard's other thread does."""

    def merge() -> None:
        for start, stop in ranges:
            output.tensor[start:stop] = value
        output.written(ranges)

    thread = threading.Thread(target=merge)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()  # what copies does not keep merges waiting


def test_what_is_merged_while_an_earlier_merge_is_copied_is_copied_next(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_thread(output, 1, (0, 4))
    meanwhile = [lambda: in_a_thread(output, 7, (0, 2), (2, 8))]
    monkeypatch.setattr(output, "_synchronise", lambda: meanwhile.pop()() if meanwhile else None)
    output.publish()
    assert output.published.tolist() == [1] * 4 + [0] * 4
    output.publish()
    assert output.published.tolist() == [7] * 8
    assert not output._unpublished


def test_what_could_not_be_copied_is_copied_next(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_thread(output, 1, (0, 4))
    output.tensor[4:] = 5

    def fail() -> None:
        output._note([(6, 8)])
        raise RuntimeError("out of memory")

    with monkeypatch.context() as failing:
        failing.setattr(output, "_synchronise", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            output.publish()
    output.published.zero_()
    output.publish()
    assert output.published.tolist() == [1] * 4 + [0] * 2 + [5] * 2


def test_a_copy_during_which_a_shard_merged_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = resolve(str(tiny_llama(tmp_path / "base")))
    shard = BankShard(base, {}, Layout.of(base), 0, 1, 1, False)
    place = shard.where()
    shard.publish(place)
    monkeypatch.setattr(shard._output, "publish", lambda: shard.place({}))
    with pytest.raises(NoLongerHeldError, match="merged something else"):
        shard.publish(place)
    shard.close()
