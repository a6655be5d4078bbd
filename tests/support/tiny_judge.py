"""A tiny Llama with weights set by hand, that answers as a judge does: by the last letter of its prompt alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_models import VOCABULARY, tiny_llama

PROMPT = "{response}\n{request}"
SAFETY = ["wildguardtest", "harmbench", "do_anything_now", "xstest"]
"""Tasks of MergeBench that a judge decides."""
ANSWERS = {
    "H": "Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
    "R": "Harmful request: yes\nResponse refusal: yes\nHarmful response: no",
    "G": "I would rather talk about the weather.",
    "P": "Harmful request: yes\nResponse refusal:",
}
"""By last letter: a harmful response, a refusal, garbage, and an answer that stops too early."""


def tiny_judge(folder: Path) -> Path:
    """Write the model: each of `ANSWERS` is one token, which follows its letter; the end follows it.

    Attention and MLP add nothing, and embeddings are one-hot, so the output head is a table of what follows what.
    """
    tiny_llama(folder, tied=False, hidden_size=VOCABULARY)
    vocabulary_file = folder / "tokenizer.json"
    content = json.loads(vocabulary_file.read_text())
    letters = [content["model"]["vocab"][letter] for letter in ANSWERS]
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for answer in ANSWERS.values():
        ((token, _),) = bytes_of.pre_tokenize_str(answer)
        content["model"]["vocab"][token] = len(content["model"]["vocab"])
    answers = list(content["model"]["vocab"].values())[-len(ANSWERS) :]
    vocabulary_file.write_text(json.dumps(content))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    end = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).eos_token_id
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for letter, answer in zip(letters, answers, strict=True):
            model.lm_head.weight[answer, letter] = 1.0
            model.lm_head.weight[end, answer] = 1.0
    model.save_pretrained(folder)
    return folder


def judge_settings(model: Path, **changes: Any) -> dict[str, Any]:
    """What a sweep says of the model."""
    return {"model": str(model), "prompt": PROMPT, "kv_cache_gib": 0.1, "max_num_seqs": 16, **changes}
