"""A model becomes a GGUF file that transformers reads as the same model; a file of another base is refused."""

from __future__ import annotations

import json
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
    for key, value in further.items():
        writer.add_string(key, value)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    for name, info in checkpoint.tensors.items():
        stem, _, leaf = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{leaf}", np.zeros(info.shape, np.float32))
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
