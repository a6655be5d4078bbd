"""A specialist that is scored as it is comes from its files, in the base's shapes, with its embeddings."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch

from mergebench_ray.checkpoints import Checkpoint, read_in_shape_of, resolve
from mergebench_ray.weights import checkpoint_weights as module
from mergebench_ray.weights.checkpoint_weights import checkpoint_weights
from mergebench_ray.weights.memory_file import MappedFiles
from tiny_models import tiny_llama, tiny_specialist


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    return resolve(str(base)), resolve(str(tiny_specialist(folder / "math", base, seed=0, extra_vocabulary=3)))


@pytest.mark.parametrize(("bucket_bytes", "block"), [(1, 1000), (20_000, 1 << 22)])
def test_every_tensor_of_a_specialist_comes_in_the_bases_shape(
    models: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch, bucket_bytes: int, block: int
) -> None:
    base, specialist = models
    monkeypatch.setattr(module, "_READ_BLOCK", block)
    weights = replace(checkpoint_weights(specialist, base), bucket_bytes=bucket_bytes)
    assert weights.version == specialist.digest()
    files, came = MappedFiles(), []
    for bucket in weights.buckets([*base.tensors]):
        for tensor in bucket.tensors:
            values = files.read(tensor.shape, torch.bfloat16, list(map(astuple, tensor.pieces)))
            expected = read_in_shape_of(base, specialist, tensor.name, 0, base.tensors[tensor.name].numel)
            assert torch.equal(values.flatten().view(torch.int16), expected.view(torch.int16)), tensor.name
            came.append(tensor.name)
    assert sorted(came) == sorted(base.tensors)
    assert any("embed" in name for name in came)
