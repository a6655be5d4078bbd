"""LoRA adapters: the same weights as peft's merge, bit by bit independent of slicing; anything else is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mergebench_ray.checkpoints import Checkpoint, check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_architectures import ARCHITECTURES
from tiny_models import tiny_adapter, tiny_gemma2, tiny_llama

ONE_ROUNDING = 2.0**-8
TARGET = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "llama", dtype="float32")
    tiny_gemma2(root / "gemma")
    tiny_adapter(root / "adapter", root / "llama", seed=1)
    tiny_adapter(root / "dora", root / "llama", seed=1, use_dora=True)
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))


def with_adapter(models: Path, adapter: Path) -> Checkpoint:
    return resolve(f"{models / 'llama'}+{adapter}")


def changed_copy(models: Path, path: Path, **options: Any) -> Path:
    """The adapter with other entries in its configuration."""
    shutil.copytree(models / "adapter", path)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, **options}))
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 3, "dtype": "float32"},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"lora_alpha": 1, "dtype": "float16"},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7}, "alpha_pattern": {"up_proj": 3}},
        {"rank_pattern": {"v_proj": 1}, "use_rslora": True},
        {"use_dora": True, "dtype": "float32"},
        {"use_dora": True, "rank_pattern": {"down_proj": 6}, "dtype": "float32"},
    ],
)
def test_weights_are_those_of_pefts_merge_rounded_once(models: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = tiny_adapter(tmp_path / "a", models / "llama", seed=7, **options)
    checkpoint = with_adapter(models, adapter)
    model = AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32, trust_remote_code=False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    changed = 0
    for name, info in checkpoint.tensors.items():
        weight = checkpoint.read(name).view(info.shape)
        assert weight.dtype == info.dtype == torch.bfloat16
        torch.testing.assert_close(weight.float(), merged[name], rtol=ONE_ROUNDING, atol=1e-7)
        changed += not torch.equal(merged[name], before[name])
    assert changed == (4 if "target_modules" in options else 14)


@pytest.mark.parametrize("kind", ["adapter", "dora"])
@pytest.mark.parametrize("step", [1, 13, 96, 1000, 5000])
def test_bits_do_not_depend_on_the_slicing(models: Path, step: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = with_adapter(models, models / kind)
    whole = checkpoint.read(TARGET)
    monkeypatch.setattr("mergebench_ray.checkpoints.adapter._BLOCK_ELEMENTS", 500)
    slices = [checkpoint.read(TARGET, start, min(step, len(whole) - start)) for start in range(0, len(whole), step)]
    assert torch.equal(torch.cat(slices), whole)


def test_the_sum_is_the_naive_one_over_the_rank(models: Path) -> None:
    stored = load_file(models / "adapter" / "adapter_model.safetensors")
    module = "base_model.model." + TARGET.removesuffix(".weight")
    a, b = stored[f"{module}.lora_A.weight"].float(), stored[f"{module}.lora_B.weight"].float()
    change = torch.zeros(len(b), a.shape[1])
    for j in range(4):
        change = change + b[:, j : j + 1] * a[j : j + 1, :]
    base = load_file(models / "llama" / "model.safetensors")[TARGET]
    expected = (base + change * 2.0).bfloat16()
    assert torch.equal(with_adapter(models, models / "adapter").read(TARGET), expected.flatten())


def test_an_adapter_is_compatible_with_its_base_and_keeps_its_folder(models: Path) -> None:
    base, specialist = resolve(str(models / "llama")), with_adapter(models, models / "adapter")
    assert specialist.folder == base.folder
    assert check_compatible(base, {"math": specialist}) == [f"base ({base}): float32 weights are rounded to bfloat16"]


def test_digest_covers_base_factors_and_scale(models: Path, tmp_path: Path) -> None:
    digests = {with_adapter(models, models / "adapter").digest(), resolve(str(models / "llama")).digest()}
    digests.add(with_adapter(models, changed_copy(models, tmp_path / "scaled", lora_alpha=5)).digest())
    digests.add(with_adapter(models, tiny_adapter(tmp_path / "other", models / "llama", seed=2)).digest())
    patterned = changed_copy(models, tmp_path / "patterned", alpha_pattern={"q_proj": 5})
    digests.add(with_adapter(models, patterned).digest())
    assert len(digests) == 5
    copy = changed_copy(models, tmp_path / "copy", lora_dropout=0.5)
    assert with_adapter(models, copy).digest() in digests


@pytest.mark.parametrize(
    "options",
    [
        {"peft_type": "LOHA"},
        {"bias": "some"},
        {"lora_bias": "yes"},
        {"target_parameters": [3]},
        {"rank_pattern": {"q_proj(": 2}},
        {"rank_pattern": {"q_proj": "two"}},
        {"alpha_pattern": {"q_proj": float("inf")}},
        {"modules_to_save": [3]},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa_niter_4"},
    ],
)
def test_what_is_not_understood_is_refused(models: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (key,) = options
    adapter = changed_copy(models, tmp_path / "a", **options)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {key}.*(merge_and_unload|mend the file)"):
        with_adapter(models, adapter)


@pytest.mark.parametrize("stated", [True, False])
def test_factors_of_transposed_weights_are_those_of_pefts_merge(tmp_path: Path, stated: bool) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=48, n_head=2, n_positions=64, vocab_size=320)
    base = tmp_path / "base"
    GPT2LMHeadModel(config).save_pretrained(base)
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, target_modules=names, fan_in_fan_out=stated, dtype="float32")
    assert_equals_pefts_merge(base, adapter, changed=6)


@pytest.mark.parametrize(
    ("options", "changed"),
    [({"bias": "all"}, 4 + 14), ({"bias": "lora_only"}, 4 + 4), ({"modules_to_save": ["norm", "lm_head"]}, 4 + 6)],
)
def test_what_is_stored_whole_beside_the_factors_replaces_the_bases(
    tmp_path: Path, options: dict[str, Any], changed: int
) -> None:
    config = {"attention_bias": True, "mlp_bias": True, "tied": False}
    base = tiny_llama(tmp_path / "base", dtype="float32", **config)
    targets = ["q_proj", "down_proj"]
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, target_modules=targets, dtype="float32", **options)
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({name: t if ".lora_" in name else t + 0.25 for name, t in stored.items()}, file)
    assert_equals_pefts_merge(base, adapter, changed=changed)


def test_what_is_added_to_biases_beside_the_factors_is_that_of_pefts_merge(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="float32", attention_bias=True, tied=False)
    options = {"target_modules": ["q_proj", "o_proj"], "lora_bias": True, "alpha_pattern": {"o_proj": 3}}
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, dtype="float32", **options)
    assert_equals_pefts_merge(base, adapter, changed=8)
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    del stored["base_model.model.model.layers.1.self_attn.q_proj.lora_B.bias"]
    save_file(stored, file)
    with pytest.raises(
        InputError, match=r"factor bias of 'model\.layers\.1\.self_attn\.q_proj\.weight' has shape none"
    ):
        resolve(f"{base}+{adapter}")


@pytest.mark.parametrize("much", [0.0, 0.25])
def test_a_head_that_peft_stores_beside_its_factors_is_changed_by_them(tmp_path: Path, much: float) -> None:
    base = tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    targets = ["q_proj", "lm_head"]
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, target_modules=targets, dtype="float32")
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    stored["base_model.model.lm_head.base_layer.weight"] += much
    save_file(stored, file)
    assert_equals_pefts_merge(base, adapter, changed=3)


@pytest.mark.parametrize("name", ["gpt-oss", "Llama-4"])
@pytest.mark.parametrize("parameters", [["gate_up_proj", "experts.down_proj"], ["down_proj"]])
def test_factors_of_experts_are_those_of_pefts_merge(
    tmp_path: Path, name: str, parameters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    ARCHITECTURES[name].random().float().save_pretrained(base)
    options = {"target_modules": [], "target_parameters": parameters, "rank_pattern": {"experts.down_proj": 3}}
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, dtype="float32", **options)
    of_class = ARCHITECTURES[name].model_class
    assert_equals_pefts_merge(base, adapter, changed=2 * len(parameters), of_class=of_class)
    checkpoint = resolve(f"{base}+{adapter}")
    (target,) = {one for one in checkpoint.tensors if one.endswith("layers.1.feed_forward.experts.down_proj")} or {
        "model.layers.1.mlp.experts.down_proj"
    }
    whole = checkpoint.read(target)
    monkeypatch.setattr("mergebench_ray.checkpoints.adapter._BLOCK_ELEMENTS", 500)
    third = len(whole) // 3 + 1
    assert torch.equal(checkpoint.read(target, third, third), whole[third : 2 * third])


def test_factors_of_experts_that_are_stored_one_by_one_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    ARCHITECTURES["Qwen3 MoE"].random().save_pretrained(base)
    adapter = tiny_adapter(tmp_path / "a", base, seed=3, target_modules=[], target_parameters=["down_proj"])
    with pytest.raises(InputError, match=r"target_parameters: '.*\.experts\.down_proj' is not stored so in .*unload"):
        resolve(f"{base}+{adapter}")


def assert_equals_pefts_merge(base: Path, adapter: Path, changed: int, of_class: Any = AutoModelForCausalLM) -> None:
    """That an adapter's weights are peft's, of which so many differ from the base's."""
    checkpoint = resolve(f"{base}+{adapter}")
    model = of_class.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    for name, info in checkpoint.tensors.items():
        weight = checkpoint.read(name).view(info.shape)
        torch.testing.assert_close(weight.float(), merged[name], rtol=ONE_ROUNDING, atol=1e-7)
    assert sum(not torch.equal(merged[name], before[name]) for name in checkpoint.tensors) == changed


@pytest.mark.parametrize(
    ("key", "value"), [("r", 0), ("r", "8"), ("r", None), ("lora_alpha", "x"), ("lora_alpha", None)]
)
def test_a_configuration_without_usable_numbers_is_refused(models: Path, tmp_path: Path, key: str, value: Any) -> None:
    adapter = changed_copy(models, tmp_path / "a", **{key: value})
    with pytest.raises(InputError, match=rf"{key} = {value!r} must be"):
        with_adapter(models, adapter)


def test_a_rank_that_does_not_match_the_factors_is_refused(models: Path, tmp_path: Path) -> None:
    adapter = changed_copy(models, tmp_path / "a", r=8)
    with pytest.raises(InputError, match=r"factor A of .* has shape \[4, \d+\], but rank 8 .* needs \[8, \d+\]"):
        with_adapter(models, adapter)


def test_an_adapter_of_another_base_is_refused(models: Path, tmp_path: Path) -> None:
    deeper = tiny_llama(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(InputError, match="give the base it was trained on"):
        with_adapter(models, tiny_adapter(tmp_path / "a", deeper, seed=1))
    wider = tiny_llama(tmp_path / "wider", intermediate_size=128)
    with pytest.raises(InputError, match=r"has shape \[4, 128\], but rank 4 on .*\[64, 96\] needs \[4, 96\]"):
        with_adapter(models, tiny_adapter(tmp_path / "b", wider, seed=1))


@pytest.mark.parametrize("name", ["base_model.model.model.norm.lora_C.weight", "base_model.model.x.weight"])
def test_other_tensors_beside_the_factors_are_refused(models: Path, tmp_path: Path, name: str) -> None:
    adapter = changed_copy(models, tmp_path / "a")
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file({**stored, name: torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="is not a factor of a linear layer"):
        with_adapter(models, adapter)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_beside_the_factors_are_the_specialists_own_and_not_merged(
    tmp_path: Path, tied: bool
) -> None:
    base = tiny_llama(tmp_path / "base", tied=tied)
    adapter = tiny_adapter(tmp_path / "a", base, seed=1, modules_to_save=["embed_tokens", "lm_head"])
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    table = torch.randn(384, 64).bfloat16()
    for name in stored:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            stored[name] = table.clone()
    save_file(stored, file)
    checkpoint, resolved = resolve(f"{base}+{adapter}"), resolve(str(base))
    assert torch.equal(checkpoint.read("model.embed_tokens.weight"), table.flatten())
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    notes = check_compatible(resolved, {"math": checkpoint})
    assert any("is stored beside the factors" in note for note in notes)
    assert any("lm_head.weight is left out" in note for note in notes) is tied
    assert any("has 384 rows, the base's 320 are used" in note for note in notes)
    assert torch.equal(checkpoint.read("model.norm.weight"), resolved.read("model.norm.weight"))


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"]])
def test_factors_of_embeddings_and_of_a_tied_head_are_left_out_with_a_note(tmp_path: Path, targets: list[str]) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_adapter(tmp_path / "a", base, seed=1, target_modules=targets)
    checkpoint = resolve(f"{base}+{adapter}")
    assert f"{targets[1]}.lora_" in "".join(checkpoint.notes)
    assert torch.equal(
        checkpoint.read("model.embed_tokens.weight"), resolve(str(base)).read("model.embed_tokens.weight")
    )


def test_an_adapter_may_bring_a_tokenizer_of_its_own(models: Path, tmp_path: Path) -> None:
    adapter = changed_copy(models, tmp_path / "a")
    tokenizer = json.loads((models / "llama" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra"] = 300
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    notes = check_compatible(resolve(str(models / "llama")), {"math": with_adapter(models, adapter)})
    assert any("its tokenizer is another (1 further tokens)" in note for note in notes)


def test_half_a_pair_of_factors_is_refused(models: Path, tmp_path: Path) -> None:
    adapter = changed_copy(models, tmp_path / "a")
    stored = load_file(adapter / "adapter_model.safetensors")
    stored.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight")
    save_file(stored, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"factor B of 'model\.layers\.0\.mlp\.up_proj\.weight' has shape none"):
        with_adapter(models, adapter)


def test_a_pickled_or_missing_adapter_is_refused(models: Path, tmp_path: Path) -> None:
    adapter = changed_copy(models, tmp_path / "a")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"only pickled weights \(adapter_model\.bin\)"):
        with_adapter(models, adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: .* missing"):
        with_adapter(models, adapter)
    with pytest.raises(InputError, match=r"adapter_config\.json: .* missing"):
        with_adapter(models, models / "llama")


def test_adapters_apply_to_gemma_too(models: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "a", models / "gemma", seed=3)
    base, specialist = resolve(str(models / "gemma")), resolve(f"{models / 'gemma'}+{adapter}")
    assert check_compatible(base, {"x": specialist}) == []
    assert not torch.equal(specialist.read(TARGET), base.read(TARGET))
    assert torch.equal(specialist.read("model.norm.weight"), base.read("model.norm.weight"))
