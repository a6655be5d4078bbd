"""A model becomes an adapter that peft reads: exact where the rank suffices, with what is left out said where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mergebench_ray import InputError, adapter, merge
from mergebench_ray.checkpoints import resolve
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("without_compiler")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "base", tied=False, attention_bias=True)


def state(base: Path, adapter: Path | None) -> dict[str, torch.Tensor]:
    """A model's weights by transformers, an adapter merged into it by peft."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    merged = model if adapter is None else PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: weights.clone() for name, weights in merged.state_dict().items()}


def test_a_merge_of_adapters_is_an_adapter_of_their_ranks_together(base: Path, tmp_path: Path) -> None:
    folders = {name: tiny_adapter(tmp_path / name, base, seed=at) for at, name in enumerate("ab")}
    merged = tmp_path / "merged"
    specialists = {name: f"{base}+{folder}" for name, folder in folders.items()}
    merge(method="model_soup", base=str(base), specialists=specialists, out=merged)
    result = adapter(str(merged), str(base), out=tmp_path / "adapter", rank=8)
    assert result.errors.error < 0.1  # what rounding to bf16 adds is of every rank
    expected, found = state(merged, None), state(base, tmp_path / "adapter")
    untouched = state(base, None)
    for name, weights in expected.items():
        size = (weights - untouched[name]).norm()
        assert (found[name] - weights).norm() <= max(0.1 * size, 1e-6), name
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8


def test_at_the_full_rank_nothing_is_left_out_and_norms_and_biases_come_whole(base: Path, tmp_path: Path) -> None:
    model = tiny_specialist(tmp_path / "model", base, seed=3)
    result = adapter(str(model), str(base), out=tmp_path / "adapter", rank=96)
    assert result.errors.error < 1e-5
    assert result.errors.left_out == ("lm_head.weight", "model.embed_tokens.weight")
    assert any("lm_head.weight differs from the base's" in note for note in result.notes)
    expected, found = state(model, None), state(base, tmp_path / "adapter")
    for name, weights in expected.items():
        if name not in result.errors.left_out:
            assert torch.allclose(found[name], weights, rtol=2**-7, atol=1e-5), name
    assert resolve(f"{base}+{tmp_path / 'adapter'}").tensors.keys() == resolve(str(base)).tensors.keys()


def test_what_is_left_out_is_what_the_rank_cannot_hold(base: Path, tmp_path: Path) -> None:
    model = tiny_specialist(tmp_path / "model", base, seed=3)
    result = adapter(str(model), str(base), out=tmp_path / "adapter", rank=5)
    name = "model.layers.0.mlp.up_proj.weight"
    ours, theirs = (load_file(folder / "model.safetensors")[name].float() for folder in (base, model))
    singular = torch.linalg.svdvals(theirs - ours)
    best = float(singular[5:].norm() / singular.norm())
    assert best <= result.errors.by_tensor[name] + 1e-6
    assert result.errors.by_tensor[name] == pytest.approx(best, rel=0.02)
    assert f"{result.errors.error:.1%} of the change is left out" in str(result.errors)


def test_weights_that_are_stored_transposed_are_those_of_pefts_merge(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=48, n_head=2, n_positions=64, vocab_size=320)
    gpt2 = GPT2LMHeadModel(config).to(torch.bfloat16)
    gpt2.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = tiny_specialist(tmp_path / "model", tmp_path / "base", seed=3)
    result = adapter(str(model), str(tmp_path / "base"), out=tmp_path / "adapter", rank=48)
    expected, found = state(model, None), state(tmp_path / "base", tmp_path / "adapter")
    for name in result.errors.by_tensor:
        known = name if name in expected else f"transformer.{name}"
        assert torch.allclose(found[known], expected[known], rtol=2**-7, atol=1e-5), name


def test_the_same_model_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    model = tiny_specialist(tmp_path / "model", base, seed=3)
    for name in ("one", "two"):
        adapter(str(model), str(base), out=tmp_path / name, rank=4)
        torch.rand(1)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_a_model_without_a_change_and_a_wrong_rank_are_refused_before_anything_is_written(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no matrix of its layers differs"):
        adapter(str(base), str(base), out=tmp_path / "adapter")
    with pytest.raises(InputError, match="rank 0"):
        adapter(str(base), str(base), out=tmp_path / "adapter", rank=0)
    assert not (tmp_path / "adapter").exists()


def test_a_change_that_is_not_finite_is_refused(base: Path, tmp_path: Path) -> None:
    model = tiny_specialist(tmp_path / "model", base, seed=3)
    stored = load_file(model / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(stored, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj\.weight' holds NaN or infinity"):
        adapter(str(model), str(base), out=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
