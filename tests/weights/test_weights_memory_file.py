"""Memory of other processes: what is written at one place is read at the other, and nothing of owners that are gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import torch

from mergebench_ray.weights import memory_file
from mergebench_ray.weights.device_memory import DeviceMemory, _as_text, _of_text, device_name
from mergebench_ray.weights.memory_file import MappedFiles, MemoryFile


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    memory = MemoryFile(12)
    memory.tensor.copy_(torch.arange(12))
    yield memory
    memory.close()


@pytest.mark.parametrize("shape", [(3, 4), (12,), (1,), (), (0,)])
def test_a_tensor_of_any_shape_is_read(file: MemoryFile, shape: tuple[int, ...]) -> None:
    count = int(torch.Size(shape).numel())
    read = MappedFiles().read(shape, torch.bfloat16, [(file.path, 0, count)])
    assert read.shape == shape
    assert torch.equal(read.flatten(), torch.arange(count).bfloat16())


def test_pieces_that_do_not_make_up_a_tensor_are_an_internal_fault(file: MemoryFile) -> None:
    with pytest.raises(ValueError, match="pieces hold 3 elements"):
        MappedFiles().read((4,), torch.bfloat16, [(file.path, 0, 3)])
    with pytest.raises(ValueError, match="lie outside"):
        MappedFiles().read((4,), torch.bfloat16, [(file.path, 9, 4)])


HANDLES = {"storage_handle": bytes(range(64)), "ref_counter_handle": b"/torch_1", "event_handle": b"\x00\xff" * 32}
GIVEN = {**HANDLES, "storage_size_bytes": 1 << 40, "storage_offset_bytes": 512, "ref_counter_offset": 3}
GIVEN["event_sync_required"] = True


def gpu_path(owner: str) -> str:
    return _as_text({**GIVEN, "tensor_size": (4,), "dtype": torch.bfloat16}, owner)


def test_a_handle_of_cuda_travels_as_text(file: MemoryFile) -> None:
    text = gpu_path(file.path)
    status = os.stat(file.path)
    assert _of_text(text) == (GIVEN, file.path, [status.st_dev, status.st_ino])
    without_fields = (text.replace('"owner"', '"other"'), text.replace('"identity"', '"other"'))
    for broken in ("cuda:", "cuda:[]", "cuda:{}", text.replace("512", "-1"), *without_fields):
        with pytest.raises(ValueError, match="not a path of GPU memory"):
            MappedFiles().read([1], torch.bfloat16, [[broken, 0, 1]])
    with pytest.raises((RuntimeError, AssertionError), match="CUDA"):  # of a torch without it
        MappedFiles().read([1], torch.bfloat16, [[text, 0, 1]])
    assert json.loads(text.removeprefix("cuda:"))["owner"] == file.path


@pytest.mark.parametrize("is_used_again", [False, True])
def test_gpu_memory_whose_owner_has_gone_is_neither_kept_nor_opened(
    is_used_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no CUDA here: this stands for its answer.
    asked: list[str] = []

    def opened(path: str, _device: torch.device) -> torch.Tensor:
        asked.append(path)
        return torch.zeros(2, dtype=torch.uint8)

    monkeypatch.setattr(memory_file, "opened", opened)
    files, descriptor = MappedFiles(), os.memfd_create("owner")
    path = gpu_path(owner := f"/proc/{os.getpid()}/fd/{descriptor}")
    memory = DeviceMemory(device_name(torch.device("cpu")), path)
    assert files.open(memory) == ""
    assert files.read([1], torch.bfloat16, [[path, 0, 1]]).tolist() == [0]
    assert asked == [path]
    os.close(descriptor)
    if is_used_again:
        assert os.memfd_create("another") == descriptor
    with pytest.raises(FileNotFoundError, match=owner):
        files.read([1], torch.bfloat16, [[path, 0, 1]])
    files.forget_dead()
    assert not files._mapped
    assert owner in files.open(memory)
    assert asked == [path]
    if is_used_again:
        os.close(descriptor)


def test_memory_of_a_dead_owner_is_unmapped_before_its_successors_is_opened() -> None:
    files, name = MappedFiles(), device_name(torch.device("cpu"))
    first, second = (os.memfd_create("owner") for _ in range(2))
    paths = [f"/proc/{os.getpid()}/fd/{one}" for one in (first, second)]
    for one in (first, second):
        os.ftruncate(one, 4)
    assert files.open(DeviceMemory(name, paths[0])) == ""
    assert [*files._mapped] == paths[:1]
    os.close(first)
    assert files.open(DeviceMemory(name, paths[1])) == ""
    assert [*files._mapped] == paths[1:]
    os.close(second)
