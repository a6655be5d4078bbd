"""The document about adding a method is true: its file is found, its snippets run, its method equals its reference."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mergebench_ray.methods as package
from bank_in_process import LocalBank
from mergebench_ray import kernels
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.kernels import Pass, Segment
from mergebench_ray.methods import TensorPlace, get_method, parse_parameters, registry
from tiny_models import tiny_llama, tiny_specialist

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The document's code blocks; the first is put where methods are looked for."""
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    folder = tmp_path_factory.mktemp("methods")
    (folder / "sign_majority.py").write_text(code[0])
    package.__path__.append(str(folder))
    registry._scan.cache_clear()
    yield code
    package.__path__.remove(str(folder))
    registry._methods.pop("sign_majority", None)
    sys.modules.pop("mergebench_ray.methods.sign_majority", None)


def test_the_document_has_the_file_its_use_and_its_reference(snippets: list[str]) -> None:
    assert len(snippets) == 3
    exec(snippets[1], {})


def test_the_methods_file_is_all_it_takes(snippets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    folder = tiny_llama(tmp_path / "base")
    base = resolve(str(folder))
    specialists = {n: resolve(str(tiny_specialist(tmp_path / n, folder, seed=i))) for i, n in enumerate("abcde")}
    reference: dict[str, Any] = {}
    exec(snippets[2], reference)
    weights = {name: merged_weights(checkpoint) for name, checkpoint in specialists.items()}
    expected = reference["sign_majority"](merged_weights(base), weights, 0.5, 0.6)
    parameters = {"scaling_coef": 0.5, "agreement": 0.6}
    one = LocalBank(base, specialists).merge("sign_majority", parameters)
    three = LocalBank(base, specialists, shards=3).merge("sign_majority", parameters)
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.int16), three[name].view(torch.int16)), name
        assert torch.allclose(tensor.float(), expected[name].float(), rtol=2**-7, atol=1e-6), name


def test_the_method_has_the_same_bits_eagerly_and_by_its_plain_function(snippets: list[str]) -> None:
    method = get_method("sign_majority")
    parameters = parse_parameters("sign_majority", {})
    scalars = method.scalars(parameters, None, TensorPlace("w", 0, 1), ["a", "b", "c"])
    base = torch.randn(5000).bfloat16()
    vectors = (torch.randn(3, 5000) * 0.1).bfloat16()
    out = torch.zeros_like(base)
    run = Pass(method.kernel(parameters), 3, scalars, torch.bfloat16, torch.device("cpu"), compiled=False)
    run.run(base, vectors, [Segment(0, 5000, 0, scalars)], out, threads=1)
    block = kernels.Block(base.float(), [vector.float() for vector in vectors], torch.arange(5000), [], torch.zeros(1))
    plain = method.merge_block(block, {name: torch.tensor(values) for name, values in scalars.items()})
    assert torch.equal(out, plain.bfloat16())


def merged_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name: checkpoint.read(name).view(info.shape)
        for name, info in checkpoint.tensors.items()
        if checkpoint.family.is_merged(name)
    }
