"""Models as transformers makes them today merge tensor by tensor, whatever their architecture; nothing is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bank_in_process import merge_streamed
from mergebench_ray.checkpoints import check_compatible, resolve
from mergebench_ray.families.configuration import tables_and_heads
from tiny_architectures import ARCHITECTURES, Architecture

pytestmark = [pytest.mark.compiler, pytest.mark.slow]
COEFFICIENT = 0.6


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_an_architecture_merges_as_plain_arithmetic_and_coefficient_0_is_the_base(
    architecture: Architecture, tmp_path: Path
) -> None:
    folders = architecture.write(tmp_path)
    base, *specialists = (resolve(str(folder)) for folder in folders)
    named = dict(zip(("first", "second"), specialists, strict=True))
    notes = check_compatible(base, named)
    assert not notes
    for coefficient in (0.0, COEFFICIENT):
        merge_streamed(tmp_path / str(coefficient), base, named, "task_arithmetic", {"scaling_coef": coefficient})
    ours, first, second = map(stored, folders)
    nothing, merged = stored(tmp_path / "0.0"), stored(tmp_path / str(COEFFICIENT))

    assert nothing.keys() == merged.keys() == ours.keys()
    assert all(torch.equal(nothing[name], ours[name]) for name in ours)
    known = tables_and_heads(base.config, base.config_file)
    assert known
    of_the_base = {*map(module, known), "embed_out"}  # GPT-NeoX's files call the head so
    for name, weights in ours.items():
        from_base = module(name) in of_the_base and not base.family.is_of_another_sense(name)
        assert base.family.is_merged(name) != from_base, name
        if from_base:
            assert torch.equal(merged[name], weights), name
            continue
        vectors = [(one[name] - weights).float() * COEFFICIENT for one in (first, second)]
        size = weights.float().abs() + sum(vector.abs() for vector in vectors)
        assert ((merged[name].float() - weights.float() - sum(vectors)).abs() <= size * 2**-8).all(), name
        assert weights.numel() == 1 or not torch.equal(merged[name], weights), name
    assert torch.equal(architecture.logits(tmp_path / "0.0"), architecture.logits(folders[0]))


def module(name: str) -> str:
    """The last module of a name: what is before it is called otherwise in files than in transformers' own model."""
    return name.split(".")[-2]


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
