"""What is asked of an engine, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        prompt_token_ids: the prompt; where prompt and answer do not fit the model, its oldest tokens are dropped.
        max_tokens: longest answer.
        stop: strings that end the answer, those of special tokens too; they are not part of it.
        temperature: 0 is greedy decoding.
        top_p: share of probability to sample from.
        top_k: number of tokens to sample from; 0 for all.
        min_p: probability, relative to the likeliest token's, below which no token is sampled.
        repetition_penalty: by which the scores of tokens that occurred before, in prompt or answer, are divided.
        min_tokens: shortest answer; at most `max_tokens` of it count.
        n: answers to sample.
        seed: of the sampling; equal seeds give equal answers.
        special_tokens: whether special tokens are kept in the answer's text.

    Of what is None the model's `generation_config.json` decides, else transformers' default.
    """

    prompt_token_ids: Sequence[int]
    max_tokens: int
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    special_tokens: bool = False


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: the first answer, up to the first of the request's stop strings or of the end-of-text token.
        token_ids: its tokens, the stopping ones included.
        others: texts of the other answers where `n` was more than one.
    """

    text: str
    token_ids: tuple[int, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """A continuation whose probability is asked.

    Attributes:
        context_token_ids: at least one token; the oldest are dropped where both do not fit the model. The last token
            of the continuation is not read, so both may be one token longer than the model's context.
        continuation_token_ids: at least one token.
        greedy: whether it matters if greedy decoding would have produced it. Where it does not, the answer to that may
            be False without having been looked at.
    """

    context_token_ids: Sequence[int]
    continuation_token_ids: Sequence[int]
    greedy: bool = True


Request = GenerationRequest | LoglikelihoodRequest
Likelihood = tuple[float, bool]
"""Sum of a continuation's log-probabilities, and whether greedy decoding would have produced it."""


@dataclass(frozen=True)
class LoadReport:
    """What a load moved.

    Attributes:
        version: the weights that the engine holds now.
        seconds: wall time, prefix cache reset included.
        tensors: number of tensors loaded; 0 where the engine held them already.
        num_bytes: their size.
    """

    version: str
    seconds: float
    tensors: int
    num_bytes: int
