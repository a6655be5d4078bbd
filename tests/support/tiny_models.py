"""Tiny random checkpoints and adapters, written as folders on disk the way transformers and peft write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 320
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
CHAT_TEMPLATE = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"


def tiny_llama(folder: Path, *, tied: bool = True, seed: int = 0, dtype: str = "bfloat16", **config: Any) -> Path:
    """Write a random Llama of two layers (about 0.1 M parameters) with tokenizer and chat template."""
    torch.manual_seed(seed)
    settings = {**small(), "tie_word_embeddings": tied, **config}
    return _save(LlamaForCausalLM(LlamaConfig(**settings)), folder, dtype)


def tiny_gemma2(folder: Path, *, seed: int = 0, dtype: str = "bfloat16", **config: Any) -> Path:
    """Write a random Gemma-2 of two layers (tied head) with tokenizer and chat template."""
    torch.manual_seed(seed)
    settings = {**small(), "query_pre_attn_scalar": 32, "sliding_window": 64, **config}
    return _save(Gemma2ForCausalLM(Gemma2Config(**settings)), folder, dtype)


def tiny_specialist(folder: Path, base: Path, *, seed: int, scale: float = 0.05, extra_vocabulary: int = 0) -> Path:
    """Write `base` with noise added to every tensor, and with further vocabulary rows if asked for."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(parameter.float() + noise * parameter.float().std().clamp(min=0.1))
    if extra_vocabulary:
        model.resize_token_embeddings(model.config.vocab_size + extra_vocabulary, mean_resizing=False)
    return _save(model, folder, str(model.dtype).removeprefix("torch."))


def tiny_adapter(
    folder: Path, base: Path, *, seed: int, rank: int = 4, dtype: str = "bfloat16", **options: Any
) -> Path:
    """Write a random PEFT LoRA adapter for `base`, on all linear layers unless `options` say otherwise."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False), LoraConfig(**settings)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
                parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def small() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _save(model: PreTrainedModel, folder: Path, dtype: str) -> Path:
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )
