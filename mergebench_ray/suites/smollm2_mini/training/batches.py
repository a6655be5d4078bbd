"""From question and answer to batches of token ids, in an order that is a pure function of the seed.

Shapes: B = batch size, L = longest example of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of one question and its answer; the answer ends with the end-of-text token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of tokens of both."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """One optimiser step's data.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64.
        positions: (P,) int64, the positions whose logits predict an answer token of some example.
        targets: (B, P) int64, the token after each position; `IGNORED` where it is no answer token.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def encode(tokenizer: Any, prompt: str, answer: str) -> Example:
    """Tokenise question and answer apart, as they meet at generation time."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    target = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Example(tuple(ids), (*target, tokenizer.eos_token_id))


def schedule(examples: Sequence[Example], batch_size: int, num_steps: int, seed: int) -> list[list[int]]:
    """Return the example numbers of each step.

    Examples of similar length share a batch, so that little is padded; which ones, and the order of the batches,
    changes with every pass over the data.
    """
    rng = Random(seed)
    steps: list[list[int]] = []
    while len(steps) < num_steps:
        order = sorted(range(len(examples)), key=lambda index: (examples[index].length, rng.random()))
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rng.shuffle(chunks)
        steps.extend(chunks)
    return steps[:num_steps]


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples on the right to one length."""
    longest = max(example.length for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : example.length] = torch.tensor(example.prompt + example.answer)
        attention_mask[row, : example.length] = 1
        labels[row, len(example.prompt) : example.length] = torch.tensor(example.answer)
    first = min(len(example.prompt) for example in examples)
    positions = torch.arange(first - 1, longest - 1)
    return Batch(input_ids, attention_mask, positions, labels[:, 1:][:, positions].contiguous())
