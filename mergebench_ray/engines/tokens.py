"""Texts to token ids, by the same rules as lm-eval's own runners, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergebench_ray.errors import InputError


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the tokenizer's special tokens; a text that begins with BOS gets no second one."""
    begin = tokenizer.bos_token
    encoded: list[list[int]] = [[]] * len(texts)
    for special in (True, False):
        chosen = [number for number, text in enumerate(texts) if special != bool(begin and text.startswith(begin))]
        if chosen:
            ids = tokenizer([texts[number] for number in chosen], add_special_tokens=special)["input_ids"]
            for number, one in zip(chosen, ids, strict=True):
                encoded[number] = list(one)
    return encoded


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each (context, continuation).

    Spaces that end a context belong to the continuation's first token, so they move there. A continuation is what the
    whole text has beyond its context's tokens. An empty context becomes BOS (EOS where there is none).
    """
    moved = []
    for context, continuation in pairs:
        stripped = context.rstrip()
        moved.append((stripped, context[len(stripped) :] + continuation))
    contexts = sorted({context for context, _ in moved if context})
    context_ids = dict(zip(contexts, encode_texts(tokenizer, contexts), strict=True))
    wholes = encode_texts(tokenizer, [context + continuation for context, continuation in moved])
    encoded = []
    for (context, continuation), whole in zip(moved, wholes, strict=True):
        if context:
            length = len(context_ids[context])
            encoded.append((whole[:length], whole[length:]))
        else:
            encoded.append(_without_context(tokenizer, continuation))
    return encoded


def prefix_token(tokenizer: Any) -> int:
    """What stands before a text that has nothing before it: BOS, or EOS where there is none.

    Raises:
        InputError: if there is neither.
    """
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if token is None:
        raise InputError(
            "the tokenizer has neither BOS nor EOS, one of which stands before a text that is scored without a "
            "context; name one in tokenizer_config.json, or leave the task out"
        )
    return int(token)


def _without_context(tokenizer: Any, continuation: str) -> tuple[list[int], list[int]]:
    begin = prefix_token(tokenizer)
    ids = list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
    return (ids[:1], ids[1:]) if ids[:1] == [begin] else ([begin], ids)
