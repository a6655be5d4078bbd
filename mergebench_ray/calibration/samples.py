"""Calibration samples: text, token ids, padded batches.

Shapes: B = batch size, L = longest sample of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError

BATCH_TOKENS = 1024
"""Most tokens of a batch, padding included, unless a single sample is longer: this bounds the memory of activations,
and larger batches are no faster."""


@dataclass(frozen=True)
class Sample:
    """One text of the calibration data; chat templates are applied already.

    Attributes:
        prompt: what a user would send.
        response: what the model should answer.
    """

    prompt: str
    response: str


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample.

    Attributes:
        ids: tokens of prompt and response.
        prompt_length: how many of them are the prompt's.
    """

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Samples padded on the right to one length.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64, 1 for a token of a sample, 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor


def encode_samples(tokenizer: Any, samples: Sequence[Sample], max_length: int) -> tuple[list[Encoded], int]:
    """Tokenise prompt and response apart, as they meet at generation time, and cut what is too long on the right.

    The prompt gets the tokenizer's special tokens unless it begins with BOS already; the response gets none.

    Returns:
        The samples in their order, and how many of them were cut to `max_length` tokens.

    Raises:
        InputError: naming the first sample (counted from 0) without a single token.
    """
    begin = tokenizer.bos_token
    encoded, num_cut = [], 0
    for number, sample in enumerate(samples):
        special = not (begin and sample.prompt.startswith(begin))
        prompt = tokenizer(sample.prompt, add_special_tokens=special)["input_ids"]
        ids = prompt + tokenizer(sample.response, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"calibration sample {number} is empty: remove it from the data")
        num_cut += len(ids) > max_length
        encoded.append(Encoded(tuple(ids[:max_length]), min(len(prompt), max_length)))
    return encoded, num_cut


def batches(encoded: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
    """Batches of samples of similar length, the shortest first; every sample is in exactly one.

    A batch has at most `batch_size` samples, and fewer where they are so long that it would exceed `BATCH_TOKENS`.
    """
    groups: list[list[Encoded]] = []
    for sample in sorted(encoded, key=lambda sample: len(sample.ids)):
        size = len(groups[-1]) + 1 if groups else 0
        if groups and size <= batch_size and size * len(sample.ids) <= BATCH_TOKENS:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [_pad(group, pad_id) for group in groups]


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over the canonical JSON of all texts, in their order."""
    return canonical_digest([asdict(sample) for sample in samples])


def _pad(samples: Sequence[Encoded], pad_id: int) -> Batch:
    longest = max(len(sample.ids) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        attention_mask[row, : len(sample.ids)] = 1
    return Batch(input_ids, attention_mask)
