"""Fisher diagonals equal plain autograd, sample by sample; broken gradients are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mergebench_ray.calibration.fisher import fisher_diagonal
from mergebench_ray.calibration.gradients import RECOMPUTE_FROM
from mergebench_ray.calibration.model import load_model
from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from tiny_models import tiny_gemma2, tiny_llama

CPU = torch.device("cpu")
UNUSED = 319
"""A token that no sample has."""


@pytest.fixture(scope="module", params=["llama", "llama_with_biases", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    if request.param == "gemma2":
        return tiny_gemma2(path, attn_logit_softcapping=5.0)
    return tiny_llama(path, tied=False, attention_bias=request.param == "llama_with_biases")


def samples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(tuple(torch.randint(3, UNUSED, (n,), generator=generator).tolist()), 1) for n in (5, RECOMPUTE_FROM, 17)
    ]


def model_of(folder: Path) -> Any:
    return load_model(resolve(str(folder)), torch.float32, CPU)


def quiet(done: float, text: str) -> None:
    pass


def naive_fisher(folder: Path, encoded: list[Encoded]) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    total: dict[str, Tensor] = {}
    for sample in encoded:
        model.zero_grad()
        probabilities = model(torch.tensor([sample.ids])).logits[0, -1].softmax(-1)
        (-probabilities[probabilities.argmax()].log()).backward()
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad.double() ** 2
    return {name: square / len(encoded) for name, square in total.items() if family_of("llama").is_merged(name)}


def test_diagonals_are_those_of_plain_autograd(folder: Path) -> None:
    found = fisher_diagonal(model_of(folder), samples(), quiet)
    expected = naive_fisher(folder, samples())
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].dtype == torch.float32
        largest = float(expected[name].max())
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-7 * largest)


def test_only_long_samples_are_run_twice_to_save_memory(folder: Path) -> None:
    model = model_of(folder)
    runs: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: runs.append(inputs[0].shape[1]))
    fisher_diagonal(model, samples(), quiet)
    assert runs == [5, RECOMPUTE_FROM, RECOMPUTE_FROM, 17]
    assert not any(module.training for module in model.modules())


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model = model_of(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    first = fisher_diagonal(model, samples(), quiet)
    second = fisher_diagonal(model, samples(), quiet)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_gradient_that_is_not_finite_is_named_with_its_sample(folder: Path) -> None:
    model = model_of(folder)
    embeddings = model.get_input_embeddings()
    # A copy, so that a tied head stays as it is.
    embeddings.weight = nn.Parameter(embeddings.weight.clone(), requires_grad=False)
    embeddings.weight[UNUSED] = float("inf")
    with pytest.raises(InputError, match=r"sample 3: gradient of 'model\..*' is NaN or infinite"):
        fisher_diagonal(model, [*samples(), Encoded((5, UNUSED), 1)], quiet)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_progress_is_told_about_every_sample(folder: Path) -> None:
    told = []
    fisher_diagonal(model_of(folder), samples(), lambda done, text: told.append((done, text)))
    assert told == [(i / 3, f"Fisher: sample {i + 1} of 3") for i in range(3)]
