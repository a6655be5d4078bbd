"""What a tensor is, by its name: embedding, output head, part of a layer; the one place that knows families' words."""

from __future__ import annotations

import re

# Modules of heads: GPT-NeoX says embed_out, ChatGLM output_layer, InternLM2 and Llama's own files output.
_HEADS = frozenset({"lm_head", "embed_out", "output_layer"})
_TOP_HEAD = re.compile(r"(?:model\.|transformer\.)?output\.(?:weight|bias)")
# Embeddings without "embed" in their names: tokens and positions of GPT-2, GPT-J, MPT, DBRX, StarCoder.
_EMBEDDINGS = frozenset({"wte", "wpe"})
# Tables of the tokens that go in, in the words of the families.
_INPUT_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "word_embedding", "tok_embeddings", "embed_in", "embeddings"}
)
# Layers that predict further tokens: DeepSeek, Qwen3-Next, GLM, ERNIE.
_FURTHER_TOKENS = re.compile(r"(?:^|\.)(?:mtp|nextn)\w*\.")
_OTHER_SENSES = re.compile(
    r"(?:^|\.)(?:vision|visual|audio|image|img|speech|multi_?modal|mm)(?:_\w+)?\.|(?:^|\.)\w+_(?:vision|audio|image)\."
)
_MASK = re.compile(r"(?:^|\.)(?:attn|crossattention|attention|self_attention)\.(?:masked_)?bias$")


def is_merged(name: str) -> bool:
    """Whether a tensor is merged: neither an embedding nor the output head (both come from the base)."""
    return counts_for_threshold(name) and not is_output_head(name)


def is_input_embedding(name: str) -> bool:
    """Whether a tensor is a table of token embeddings, which a tied head shares."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in _INPUT_EMBEDDINGS


def is_output_head(name: str) -> bool:
    """Whether a tensor belongs to an output head of its own (untied from the embeddings)."""
    return not _HEADS.isdisjoint(name.split(".")) or _TOP_HEAD.fullmatch(name) is not None


def counts_for_threshold(name: str) -> bool:
    """Whether a tensor's entries count for global thresholds: all but embeddings, so an untied head counts.

    Everything with "embed" in its name goes with the embeddings, as in MergeBench's code: Bloom's normalisation of
    embeddings, too.
    """
    return "embed" not in name and _EMBEDDINGS.isdisjoint(name.split("."))


def layer_of(name: str, num_layers: int) -> int | None:
    """Index of the text layer that a tensor belongs to: the first number among the parts of its name.

    None outside the layers, and in stacks of another kind: layers that predict further tokens (they are numbered after
    the others, or from 0 in a part of their own), vision and audio.
    """
    number = next((int(part) for part in name.split(".") if _is_number(part)), None)
    if number is None or number >= num_layers or _FURTHER_TOKENS.search(name) or _OTHER_SENSES.search(name):
        return None
    return number


def is_beside_the_text(name: str, num_layers: int) -> bool:
    """Whether plain text generation does without a tensor: layers that predict further tokens, vision, audio."""
    numbered = any(map(_is_number, name.split(".")))
    beside = _FURTHER_TOKENS.search(name) or _OTHER_SENSES.search(name)
    return bool(beside) or (numbered and layer_of(name, num_layers) is None)


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that the code makes by itself, and that older versions saved: causal masks."""
    return _MASK.search(name) is not None


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) < 8
