"""Gram matrices equal XᵀX of the inputs that the layers really get, and padding never enters them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mergebench_ray.calibration.gram import GramCollector, Grams, gram_matrices
from mergebench_ray.calibration.model import LayerStack, load_model, read_parameter
from mergebench_ray.calibration.samples import Encoded, batches
from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from tiny_models import tiny_gemma2, tiny_llama

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    return tiny_gemma2(path, attn_logit_softcapping=5.0) if request.param == "gemma2" else tiny_llama(path, tied=False)


def samples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(3, 320, (n,), generator=generator).tolist()), 1) for n in (5, 90, 17, 30, 8)]


def model_of(folder: Path) -> Any:
    return load_model(resolve(str(folder)), torch.float32, CPU)


def naive_gram_matrices(folder: Path, encoded: list[Encoded]) -> dict[str, Tensor]:
    """Each sample alone through transformers' own model; all inputs kept, one product at the end."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    inputs: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            kept = inputs.setdefault(f"{name}.weight", [])
            module.register_forward_hook(lambda _, args, __, kept=kept: kept.append(args[0][0].double()))
    with torch.no_grad():
        for sample in encoded:
            model(torch.tensor([sample.ids]))
    return {name: torch.cat(kept).T @ torch.cat(kept) / len(torch.cat(kept)) for name, kept in inputs.items()}


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Relative to the largest entry, since entries off the diagonal may be sums that cancel."""
    assert float((found.double() - expected.double()).abs().max()) <= relative * float(expected.abs().max())


def by_weight(grams: Grams) -> dict[str, Tensor]:
    return {name: grams.matrices[group] for name, group in grams.group_of.items()}


def test_matrices_are_those_of_the_captured_inputs(folder: Path) -> None:
    grams = gram_matrices(model_of(folder), batches(samples(), 2, pad_id=0))
    expected = naive_gram_matrices(folder, samples())
    found = by_weight(grams)
    assert set(found) == set(expected)
    assert grams.rows == sum(len(sample.ids) for sample in samples())
    for name in expected:
        assert found[name].dtype == torch.float32
        assert_close(found[name], expected[name], 1e-4)


@pytest.mark.parametrize("pad_id", [0, 7])
def test_padding_never_enters(folder: Path, pad_id: int) -> None:
    model = model_of(folder)
    alone = gram_matrices(model, batches(samples(), 1, pad_id=0))
    together = gram_matrices(model, batches(samples(), 5, pad_id=pad_id))
    assert together.rows == alone.rows
    for name in alone.matrices:
        assert_close(together.matrices[name], alone.matrices[name], 1e-5)


def test_layers_with_the_same_input_share_a_matrix(folder: Path) -> None:
    grams = gram_matrices(model_of(folder), batches(samples(), 2, pad_id=0))
    layer = "model.layers.1."
    groups = {name.removeprefix(layer): g.removeprefix(layer) for name, g in grams.group_of.items() if layer in name}
    queries, gate = "self_attn.q_proj.weight", "mlp.gate_proj.weight"
    assert groups == {
        **{f"self_attn.{name}_proj.weight": queries for name in "qkv"},
        "self_attn.o_proj.weight": "self_attn.o_proj.weight",
        **{f"mlp.{name}_proj.weight": gate for name in ("gate", "up")},
        "mlp.down_proj.weight": "mlp.down_proj.weight",
    }
    assert set(grams.matrices) == set(grams.group_of.values())
    assert all(family_of("llama").is_merged(name) for name in grams.group_of)


def test_a_single_layer_gives_the_matrices_of_the_whole_model(folder: Path) -> None:
    data = batches(samples(), 2, pad_id=0)
    checkpoint = resolve(str(folder))
    stack = LayerStack(checkpoint, torch.float32, CPU)
    hidden = stack.embed(data)
    weights = {n: read_parameter(checkpoint, n, shape, torch.float32, CPU) for n, shape in stack.shapes(0).items()}
    with stack.filled(0, weights) as layer, GramCollector(layer, stack.family, stack.prefix(0)) as collector:
        for batch, states in zip(data, hidden):
            collector.expect(batch, CPU)
            stack.run(batch, states)
    whole = gram_matrices(model_of(folder), data)
    alone = collector.grams()
    assert alone.group_of == {n: g for n, g in whole.group_of.items() if n.startswith(stack.prefix(0))}
    for name, matrix in alone.matrices.items():
        assert_close(matrix, whole.matrices[name], 1e-5)


def test_an_input_that_is_not_finite_is_named(folder: Path) -> None:
    model = model_of(folder)
    model.get_parameter("model.layers.0.self_attn.v_proj.weight")[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"input of 'model\.layers\.0\.self_attn\.o_proj\.weight' is NaN"):
        gram_matrices(model, batches(samples(), 2, pad_id=0))


def test_progress_is_told_and_hooks_are_gone_afterwards(folder: Path) -> None:
    model, told = model_of(folder), []
    gram_matrices(model, batches(samples(), 2, pad_id=0), lambda done, text: told.append((done, text)))
    assert [done for done, _ in told] == [0, 1 / 3, 2 / 3]
    assert not any(module._forward_pre_hooks for module in model.modules())
