"""A model becomes a GGUF file that transformers reads as the same model; a file of another base is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

import mergebench_ray
from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import InputError
from tiny_architectures import ARCHITECTURES
from tiny_models import tiny_tokenizer

KINDS = {
    **{"Llama": "llama", "Llama, tied": "llama", "Mistral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"},
    **{"Gemma-2": "gemma2", "Gemma-3": "gemma3", "Phi-3": "phi3"},
}


def written(folder: Path, name: str) -> Path:
    """A random model of an architecture."""
    ARCHITECTURES[name].random().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def file_of_base(file: Path, model: Path, architecture: str, **further: Any) -> Path:
    """A GGUF file with the settings and tokenizer of a model, and zeros for its weights."""
    checkpoint = resolve(str(model))
    config = checkpoint.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("another model")
    writer.add_url("https://example.org")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim") or 64)
    writer.add_value_length(config.get("head_dim") or 64)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = {index: token for token, index in vocabulary.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(config["vocab_size"])])
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3) + [5] * (config["vocab_size"] - len(tokens)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    tensors = {key: value for key, value in further.items() if isinstance(value, np.ndarray)}
    for key, value in further.items():
        if key not in tensors:
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    for name, info in checkpoint.tensors.items():
        stem, _, leaf = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{leaf}", np.zeros(info.shape, np.float32))
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", KINDS)
def test_transformers_reads_the_same_model(tmp_path: Path, name: str) -> None:
    model = written(tmp_path / "model", name)
    like = file_of_base(tmp_path / "like.gguf", model, KINDS[name])
    result = mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")
    assert result.notes == []
    checkpoint = resolve(str(model))
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="out.gguf",
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    ).state_dict()
    for tensor, info in checkpoint.tensors.items():
        expected = checkpoint.read(tensor).view(info.shape).float()
        # Gemma's norms are stored as they are multiplied with, which rounds what is far below one.
        torch.testing.assert_close(read[tensor], expected, rtol=0, atol=2.0**-23 if "norm" in tensor else 0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("models") / "model", "Llama")


def test_what_is_no_weight_is_that_of_the_file_but_for_where_it_is_from(llama: Path, tmp_path: Path) -> None:
    like = file_of_base(tmp_path / "like.gguf", llama, "llama", **{"tokenizer.chat_template": "other"})
    result = mergebench_ray.gguf(str(llama), like=str(like), out=tmp_path / "merged.gguf", kind="q8_0")
    ours, theirs = gguf.GGUFReader(tmp_path / "merged.gguf"), gguf.GGUFReader(like)
    same = [key for key in theirs.fields if key.startswith(("tokenizer.ggml.", "llama."))]
    assert len(same) > 12
    assert all(ours.fields[key].contents() == theirs.fields[key].contents() for key in same)
    assert ours.fields["general.name"].contents() == "merged"
    assert "general.url" not in ours.fields
    assert ours.fields["tokenizer.chat_template"].contents() == (llama / "chat_template.jinja").read_text()
    assert result.notes == ["the chat template is the model's own, another than the other file's"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in ours.tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.attn_v.weight"] == "Q8_0"
    (values,) = [tensor for tensor in ours.tensors if tensor.name == "blk.1.attn_v.weight"]
    expected = resolve(str(llama)).read("model.layers.1.self_attn.v_proj.weight").float()
    found = torch.tensor(gguf.dequantize(values.data, values.tensor_type)).flatten()
    assert (found - expected).abs().max() <= expected.abs().max() / 127


def test_a_file_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    def refused(other: Path, architecture: str, reason: str) -> None:
        like = tmp_path / "like.gguf"
        like.unlink(missing_ok=True)
        file_of_base(like, other, architecture)
        with pytest.raises(InputError, match=reason):
            mergebench_ray.gguf(str(llama), like=str(like), out=tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()

    refused(llama, "qwen2", r"is 'qwen2', the model 'llama' .*; those written are gemma2, ")
    other = shutil.copytree(llama, tmp_path / "other")
    config = json.loads((llama / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    refused(other, "llama", r"llama\.attention\.layer_norm_rms_epsilon is 0\.25, the model's rms_norm_eps 1e-06 ")
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "config.json").write_text(json.dumps(config))
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(other, "llama", r"token \d+ is 'B', the model's 'A'; give a GGUF file of the model's own base")
    refused(
        written(tmp_path / "tied", "Llama, tied"), "llama", r"has no 'output\.weight', the model's 'lm_head\.weight'"
    )


def rope_freqs(factor: float) -> np.ndarray:
    """As llama.cpp's own converter computes them for a Llama that was trained on 8,192 tokens first."""
    factors = []
    for frequency in 10_000.0 ** -(np.arange(0, 64, 2) / 64):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1) / (4 - 1)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if wavelength < 8192 / 4 else factor if wavelength > 8192 else between)
    return np.array(factors)


_LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALING = "llama.rope.scaling"
SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"rope_type": "default"}, {f"{_SCALING}.type": "none"}),
    "linear": ({"rope_type": "linear", "factor": 4.0}, {f"{_SCALING}.factor": 4.0}),
    "linear by 2": ({"rope_type": "linear", "factor": 2.0}, {f"{_SCALING}.type": "linear", f"{_SCALING}.factor": 2.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {f"{_SCALING}.type": "yarn", f"{_SCALING}.factor": 4.0, f"{_SCALING}.original_context_length": 128},
    ),
    **{
        f"llama3 by {factor}": (
            {**_LLAMA_3, "factor": factor, "original_max_position_embeddings": 8192},
            {"rope_freqs.weight": rope_freqs(factor)},
        )
        for factor in (8.0, 32.0)
    },
}


def with_settings(model: Path, folder: Path, **settings: Any) -> Path:
    """The same model with other settings."""
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        *((kind, kind, None) for kind in SCALINGS),
        ("llama3 by 8.0", "none", "its rope scaling is none, the model's llama3 "),
        ("none", "llama3 by 8.0", "its rope scaling is llama3, the model's none "),
        ("llama3 by 8.0", "llama3 by 32.0", "'rope_freqs.weight' is not what the model's settings give "),
        ("none", "linear", "its rope scaling is linear, the model's none "),
        ("yarn", "linear", "its rope scaling is linear, the model's yarn "),
        ("linear", "linear by 2", "llama.rope.scaling.factor is 2.0, the model's factor of rope scaling 4.0 "),
    ],
)
def test_a_file_of_another_rope_scaling_is_refused(
    llama: Path, tmp_path: Path, ours: str, theirs: str, reason: str | None
) -> None:
    model = with_settings(llama, tmp_path / "model", rope_parameters={**SCALINGS[ours][0], "rope_theta": 10_000.0})
    like = file_of_base(tmp_path / "like.gguf", llama, "llama", **SCALINGS[theirs][1])
    if reason is None:
        mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")
        return
    with pytest.raises(InputError, match=re.escape(reason)):
        mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")


def test_factors_of_long_texts_are_compared(tmp_path: Path) -> None:
    factors = {"long_factor": [4.0] * 32, "short_factor": [1.0] * 32}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
    plain = written(tmp_path / "plain", "Phi-3")
    model = with_settings(plain, tmp_path / "model", rope_parameters=rope, original_max_position_embeddings=128)
    for long, short in ((4.0, 1.0), (4.0, 2.0)):
        tensors = {"rope_factors_long.weight": np.full(32, long), "rope_factors_short.weight": np.full(32, short)}
        like = file_of_base(tmp_path / f"{short}.gguf", plain, "phi3", **tensors)
        if short == 1.0:
            mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")
            continue
        with pytest.raises(InputError, match=r"'rope_factors_short\.weight' is not what the model's settings give "):
            mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "other.gguf")


def test_soft_caps_are_compared_also_where_a_file_leaves_them_to_llama_cpp(tmp_path: Path) -> None:
    model = written(tmp_path / "model", "Gemma-2")
    like = file_of_base(tmp_path / "like.gguf", model, "gemma2", **{"gemma2.attn_logit_softcapping": 30.0})
    with pytest.raises(InputError, match=r"gemma2\.attn_logit_softcapping is 30\.0, the model's .* 50\.0 "):
        mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")
    other = with_settings(model, tmp_path / "other", final_logit_softcapping=None)
    like = file_of_base(tmp_path / "unsaid.gguf", model, "gemma2")
    with pytest.raises(InputError, match=r"gemma2\.final_logit_softcapping is 30\.0, the model's .* 0\.0 "):
        mergebench_ray.gguf(str(other), like=str(like), out=tmp_path / "out.gguf")


def test_the_token_that_ends_texts_is_the_models_own(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<pad>"}))
    like = file_of_base(tmp_path / "like.gguf", llama, "llama")
    result = mergebench_ray.gguf(str(model), like=str(like), out=tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos")] == [1, 0]
    assert result.notes == ["tokenizer.ggml.eos_token_id is the model's own, 0, another than the other file's, 2"]
