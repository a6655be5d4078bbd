"""Other weights of the same function: equal answers in transformers, and none that hides a tensor that stayed old."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergebench_ray.checkpoints import resolve
from mergebench_ray.engines.engine_proof import TOLERANCES
from mergebench_ray.engines.same_function import SameFunction
from tiny_models import small

CONTEXT = [1, 7, 9, 30, 44]
ANSWER = [55, 123, 200, 17, 99]
SEEN = TOLERANCES["float32"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
LATENT = {
    **{"num_key_value_heads": 2, "head_dim": 16, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16},
    **{"qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
BIASES = {"attention_bias": True, "mlp_bias": True}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "tied": ("Llama", {"tie_word_embeddings": True}, "RMSNorm"),
    "untied": ("Llama", {"tie_word_embeddings": False, **BIASES}, "RMSNorm"),
    "query and key norms": ("Qwen3", {"tie_word_embeddings": True}, "RMSNorm"),
    "fused": ("Phi3", {"tie_word_embeddings": False}, "RMSNorm"),
    "norms of 1 + w": ("Gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 16}, "GemmaRMSNorm"),
    "norms of outputs": ("Olmo2", {}, "RMSNorm"),
    "norms with means": ("StableLm", {"tie_word_embeddings": False}, "LayerNorm"),
    "norms with means and biases": ("Phi", {"tie_word_embeddings": False}, "LayerNorm"),
    "experts": ("Qwen3Moe", {**EXPERTS, "tie_word_embeddings": False}, "RMSNorm"),
    "experts in one tensor": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}, "RMSNorm"),
    "latent attention": ("DeepseekV3", LATENT, "RMSNorm"),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, SameFunction]:
    name, settings, norm = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**small(), "initializer_range": 0.12, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path / "model", SameFunction(resolve(str(tmp_path / "model")), [norm], ANSWER)


def load(folder: Path, weights: Mapping[str, Tensor] | None = None) -> Any:
    """The folder's model in float32, with some weights replaced."""
    if weights is not None:
        other = folder.parent / "other"
        shutil.copytree(folder, other)
        content = load_file(folder / "model.safetensors") | dict(weights)
        save_file(content, other / "model.safetensors", metadata={"format": "pt"})
        folder = other
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )


def likelihood(model: Any, answer: Sequence[int]) -> float:
    """Log-probability of the answer."""
    with torch.no_grad():
        likelihoods = model(torch.tensor([[*CONTEXT, *answer]])).logits[0].log_softmax(-1)
    return float(sum(likelihoods[len(CONTEXT) - 1 + place, token] for place, token in enumerate(answer)))


def test_other_weights_answer_the_same_and_every_old_tensor_shows(family: tuple[Path, SameFunction]) -> None:
    folder, same = family
    assert not same.unknown
    checkpoint = resolve(str(folder))
    weights = {name: same.change(name, checkpoint.read(name)) for name in checkpoint.tensors}
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], stored[name]) == (name in same.unchanged) for name in weights)
    renamed = [same.token(token) for token in ANSWER]
    model, other = load(folder), load(folder, weights)
    expected = likelihood(model, ANSWER)
    assert likelihood(other, renamed) == pytest.approx(expected, abs=1e-5)
    assert abs(likelihood(model, renamed) - expected) > SEEN
    parameters = dict(other.named_parameters())
    for name in parameters.keys() & weights.keys() - set(same.unchanged):
        parameters[name].data.copy_(stored[name])
        assert abs(likelihood(other, renamed) - expected) > SEEN, f"{name} may stay old"
        parameters[name].data.copy_(weights[name])


def test_a_model_with_a_tensor_of_unknown_place_is_not_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**small())
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.0.mlp.mystery.weight"] = torch.ones(64, 64)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same = SameFunction(resolve(str(tmp_path)), ["RMSNorm"], ANSWER)
    assert same.unknown == ["model.layers.0.mlp.mystery.weight"]
    assert set(same.unchanged) == set(resolve(str(tmp_path)).tensors)
    assert [same.token(token) for token in ANSWER] == ANSWER
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(same.change(name, stored[name]), stored[name])
