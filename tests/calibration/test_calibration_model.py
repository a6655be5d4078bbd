"""Models for calibration: the same function as transformers' own loading, whole or layer by layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mergebench_ray.calibration.model import LayerStack, load_model, read_parameter
from mergebench_ray.calibration.samples import Batch, Encoded, batches
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_adapter, tiny_gemma2, tiny_llama

CPU = torch.device("cpu")
LENGTHS = (5, 90, 17, 30)


@pytest.fixture(scope="module", params=["llama", "llama_tied", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma-2's sliding window of 64 is shorter than the longest sample."""
    path = tmp_path_factory.mktemp("model")
    if request.param == "gemma2":
        return tiny_gemma2(path, attn_logit_softcapping=5.0)
    return tiny_llama(path, tied=request.param == "llama_tied")


def some_batches(batch_size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    samples = [Encoded(tuple(torch.randint(3, 320, (n,), generator=generator).tolist()), 1) for n in LENGTHS]
    return batches(samples, batch_size, pad_id=0)


def logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def all_weights(checkpoint: Checkpoint, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    return {name: read_parameter(checkpoint, name, shape, torch.float32, CPU) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_answers_as_transformers_own(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(resolve(str(folder)), dtype, CPU)
    attention = model.config._attn_implementation
    expected = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, trust_remote_code=False
    )
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for batch in some_batches(2):
        assert torch.equal(logits(model, batch), logits(expected, batch))


def test_soft_capping_takes_part(tmp_path: Path) -> None:
    answers = [
        logits(
            load_model(resolve(str(tiny_gemma2(tmp_path / str(cap), attn_logit_softcapping=cap))), torch.float32, CPU),
            b,
        )
        for cap in (0.01, 50.0)
        for b in some_batches(4)
    ]
    assert not torch.allclose(*answers, rtol=1e-3)


def test_a_loaded_model_is_ready_for_calibration(folder: Path) -> None:
    model = load_model(resolve(str(folder)), torch.float32, CPU)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_adapters_are_applied(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_adapter(tmp_path / "adapter", base, seed=3)
    checkpoint = resolve(f"{base}+{adapter}")
    model = load_model(checkpoint, torch.float32, CPU)
    name = "model.layers.1.mlp.up_proj.weight"
    weight = model.get_parameter(name)
    assert torch.equal(weight.flatten(), checkpoint.read(name).float())
    assert not torch.equal(weight.flatten(), resolve(str(base)).read(name).float())


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"model\.norm\.weight.*cannot be calibrated"):
        load_model(resolve(str(tmp_path)), torch.float32, CPU)


def test_an_architecture_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    config = tiny_llama(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "unheard_of"}))
    with pytest.raises(InputError, match="no language model 'unheard_of'"):
        load_model(resolve(str(tmp_path)), torch.float32, CPU)


def test_layers_one_after_the_other_are_the_whole_model(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    model = load_model(checkpoint, torch.float32, CPU)
    stack = LayerStack(checkpoint, torch.float32, CPU)
    data = some_batches(2)
    hidden = stack.embed(data)
    for index in range(stack.num_layers):
        with stack.filled(index, all_weights(checkpoint, stack.shapes(index))):
            hidden = [stack.run(batch, states) for batch, states in zip(data, hidden)]
    for batch, states in zip(data, hidden):
        with torch.no_grad():
            expected = model.base_model(batch.input_ids, batch.attention_mask).last_hidden_state
            normed = model.base_model.norm(states)
        rows = batch.attention_mask.bool()
        torch.testing.assert_close(normed[rows], expected[rows], rtol=1e-5, atol=1e-5)


def test_a_layer_has_weights_only_while_it_is_filled(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    stack = LayerStack(checkpoint, torch.float32, CPU)
    stack.embed(some_batches(4))
    with stack.filled(1, all_weights(checkpoint, stack.shapes(1))) as layer:
        assert {parameter.device.type for parameter in layer.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in stack._backbone.parameters()} == {"meta"}
