"""Continuations whose likelihood is asked: none without a token, none longer than the model; and texts as windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mergebench_ray.engines.tokens import encode_pairs, encode_texts, prefix_token
from mergebench_ray.errors import InputError, about
from mergebench_ray.tasks.scored_task import ScoredTask

TokenPair = tuple[list[int], list[int]]


def encode_continuations(
    task: ScoredTask, asked: list[tuple[str, tuple[str, str]]], tokenizer: Any, max_model_len: int
) -> list[TokenPair]:
    """Token ids of contexts and continuations.

    Args:
        task: the task.
        asked: item's id, and its context and continuation.
        tokenizer: the model's.
        max_model_len: most tokens of a continuation, as in lm-eval.

    Raises:
        InputError: naming task and item, if a continuation has no token or too many; naming the task, if the tokenizer
            has nothing to stand before one without a context.
    """
    with about(f"task {task.name}"):
        pairs = encode_pairs(tokenizer, [texts for _, texts in asked])
    for (item, (_, text)), (context, continuation) in zip(asked, pairs, strict=True):
        if not context or not continuation:
            raise InputError(
                f"task {task.name}, item {item}: the tokenizer makes no token of {text!r} after its context, so it has "
                "no likelihood; mend the data or the task"
            )
        if len(continuation) > max_model_len:
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            raise InputError(
                f"task {task.name}, item {item}: the continuation {shown!r} has {len(continuation)} tokens, more than "
                f"the suite's max_model_len {max_model_len}; raise max_model_len, mend the data, or leave the task out"
            )
    return pairs


def encode_windows(texts: Sequence[str], tokenizer: Any, max_model_len: int) -> list[list[TokenPair]]:
    """Token ids of texts whose whole likelihood is asked, in lm-eval's windows: each token is scored in one of them.

    All windows but the last are as long as the model and have one token before them; the last has as many as fit.

    Args:
        texts: to be scored from their first token on.
        tokenizer: the model's.
        max_model_len: of a window, in tokens.

    Returns:
        by text, context and continuation of its windows; none where it has no token.

    Raises:
        InputError: if the tokenizer has nothing to stand before a text.
    """
    if not texts:
        return []
    first = prefix_token(tokenizer)
    return [
        [make_disjoint_window(window) for window in get_rolling_token_windows(ids, first, max_model_len, 1)]
        for ids in encode_texts(tokenizer, texts)
    ]


def check_continuations(tasks: Iterable[ScoredTask], model_folder: Path, max_model_len: int) -> None:
    """Refuse continuations longer than the model, before any engine starts.

    The tokenizer is read, and used, only for texts that have as many bytes, since a token has a byte or more. Should
    one have less, the continuation is refused once its split is prepared.

    Args:
        tasks: with their items.
        model_folder: holds the tokenizer.
        max_model_len: most tokens of a continuation.

    Raises:
        InputError: naming task and item.
    """
    tokenizer: Any = None
    for task in tasks:
        long = [
            (item.id, instance.args)
            for item in task.items
            for instance in item.instances
            if instance.request_type == "loglikelihood" and _num_bytes(*instance.args) > max_model_len
        ]
        if long:
            tokenizer = tokenizer or _tokenizer(model_folder)
            encode_continuations(task, long, tokenizer, max_model_len)


def _tokenizer(model_folder: Path) -> Any:
    from transformers import AutoTokenizer  # seconds, for what hardly any suite needs

    return AutoTokenizer.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False)


def _num_bytes(context: str, continuation: str) -> int:
    """Of a continuation, with the spaces that end its context: they are scored with it."""
    return len((context[len(context.rstrip()) :] + continuation).encode())
