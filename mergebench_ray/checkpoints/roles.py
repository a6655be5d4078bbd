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
