"""Memory files: what is written at one place is read at the other, whatever its shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

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
