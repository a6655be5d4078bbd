"""Requests as the prompts that vLLM is given: made once, asked of every candidate.

A continuation of m tokens is scored from a prompt that holds the context and its first m - 1 tokens. vLLM gives the
log-probability of the last one as that of a next token, so continuations that differ in nothing else share a prompt:
the choices A, B, C and D cost one context. Only the m - 1 tokens before need log-probabilities of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind

from mergebench_ray.engines.generation_defaults import GenerationDefaults
from mergebench_ray.engines.requests import (
    Generation,
    GenerationRequest,
    Likelihood,
    Request,
)
from mergebench_ray.errors import InputError

Answer = Generation | Likelihood


@dataclass(frozen=True)
class GenerationPrompt:
    """A prompt to continue.

    Attributes:
        request: index of the request.
        text_of: from an answer's tokens to its text.
    """

    token_ids: list[int]
    sampling: SamplingParams
    request: int
    text_of: Callable[[Sequence[int]], str]

    @property
    def sequences(self) -> int:
        """How many sequences vLLM makes of it."""
        return int(self.sampling.n)

    @property
    def requests(self) -> tuple[int, ...]:
        """Indices of the requests that it answers."""
        return (self.request,)

    def again(self, output: Any) -> None:
        """What to ask once more: nothing."""

    def answers(self, output: Any) -> Iterator[tuple[int, Answer]]:
        """The answer of vLLM, with the index of the request."""
        first, *others = [(self.text_of(one.token_ids), tuple(one.token_ids)) for one in output.outputs]
        yield self.request, Generation(*first, tuple(text for text, _ in others))


@dataclass(frozen=True)
class ScoringPrompt:
    """A context, what continuations have in common, and what each of them ends with.

    Attributes:
        token_ids: context and common tokens.
        num_common: how many tokens of the continuations it ends with.
        last_tokens: index of the request -> last token of its continuation.
        by_token_ids: whether the common tokens' scores are asked for alone, which leaves their ranks unknown.
    """

    token_ids: list[int]
    sampling: SamplingParams
    num_common: int
    last_tokens: dict[int, int]
    by_token_ids: bool

    @property
    def sequences(self) -> int:
        """How many sequences vLLM makes of it."""
        return 1

    @property
    def requests(self) -> tuple[int, ...]:
        """Indices of the requests that it answers."""
        return tuple(self.last_tokens)

    def again(self, output: Any) -> ScoringPrompt | None:
        """What to ask once more: vLLM does not score tokens that it finds in its prefix cache."""
        unread = (output.num_cached_tokens or 0) < len(self.token_ids) - self.num_common
        if self.num_common == 0 or unread or self.sampling.skip_reading_prefix_cache:
            return None
        sampling = self.sampling.clone()
        sampling.skip_reading_prefix_cache = True
        return replace(self, sampling=sampling)

    def answers(self, output: Any) -> Iterator[tuple[int, Answer]]:
        """Likelihoods of all its continuations, each with the index of its request."""
        common, greedy = self._common(output)
        completion = output.outputs[0]
        after = completion.logprobs[0]
        for request, token in self.last_tokens.items():
            yield request, (common + after[token].logprob, greedy and completion.token_ids[0] == token)

    def _common(self, output: Any) -> Likelihood:
        if self.num_common == 0:
            return 0.0, True
        if self.by_token_ids:
            return float(output.prompt_token_id_logprobs.sum()), False
        rows = output.prompt_logprobs
        # From the end: rows of cached tokens may be left out.
        found = [rows[len(rows) - back][self.token_ids[-back]] for back in range(self.num_common, 0, -1)]
        return sum(one.logprob for one in found), all(one.rank == 1 for one in found)


Prompt = GenerationPrompt | ScoringPrompt


class Batch:
    """Requests that are asked together.

    Args:
        requests: of any kind.
        max_model_len: longest prompt plus answer; a prompt that does not fit loses its oldest tokens.
        tokenizer: the model's.
        defaults: how answers are generated where a request does not say it.
        urgent: indices of generations to ask for before all else.
        token_id_scores: whether vLLM can score given tokens of a prompt alone (its V2 model runner can).
        in_order: whether prompts stand in the order of the requests; one that answers several where the first does.

    Attributes:
        size: number of requests.
        prompts: what vLLM is given: unless `in_order`, longest first, so that no long answer is left over at the end,
            and equal contexts side by side, so that the prefix cache still has them.

    Raises:
        InputError: if a request leaves no room for a prompt, or what is to be scored is empty.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        max_model_len: int,
        tokenizer: Any,
        defaults: GenerationDefaults,
        urgent: Collection[int] = (),
        token_id_scores: bool = False,
        in_order: bool = False,
    ) -> None:
        self.size = len(requests)
        first = frozenset(urgent)
        ordered: list[tuple[tuple[bool, int, list[int]], Prompt]] = []
        groups: dict[tuple[tuple[int, ...], int, bool], dict[int, int]] = {}
        for index, request in enumerate(requests):
            if isinstance(request, GenerationRequest):
                ids = _fit(request.prompt_token_ids, request.max_tokens, max_model_len)
                order = (index not in first, -len(ids) - request.max_tokens, ids)
                sampling = _decoding(request, defaults)
                least = replace(request, min_tokens=sampling.min_tokens)
                ordered.append((order, GenerationPrompt(ids, sampling, index, partial(_text, tokenizer, least))))
            else:
                if not request.context_token_ids or not request.continuation_token_ids:
                    raise InputError("log-likelihood: context and continuation need at least one token each")
                *common, last = request.continuation_token_ids
                context = _fit(request.context_token_ids, len(common), max_model_len)
                groups.setdefault(((*context, *common), len(common), request.greedy), {})[index] = last
        for (shared, num_common, greedy), last_tokens in groups.items():
            order = (True, num_common - len(shared), [*shared])
            by_token_ids = token_id_scores and not greedy
            for part in _parts(last_tokens):
                ordered.append((order, _scoring([*shared], num_common, part, by_token_ids)))
        if in_order:
            self.prompts = sorted((prompt for _, prompt in ordered), key=lambda prompt: prompt.requests[0])
        else:
            self.prompts = [prompt for _, prompt in sorted(ordered, key=lambda entry: entry[0])]


def _fit(prompt: Sequence[int], reserved: int, max_model_len: int) -> list[int]:
    room = max_model_len - reserved
    if room < 1:
        raise InputError(f"{reserved} tokens after the prompt do not fit max_model_len {max_model_len}")
    return list(prompt[-room:])


def _parts(last_tokens: dict[int, int]) -> Iterator[dict[int, int]]:
    """As many continuations at a time as vLLM takes tokens to score."""
    entries = list(last_tokens.items())
    for start in range(0, len(entries), MAX_LOGPROB_TOKEN_IDS):
        yield dict(entries[start : start + MAX_LOGPROB_TOKEN_IDS])


def _decoding(request: GenerationRequest, defaults: GenerationDefaults) -> SamplingParams:
    own = {name: getattr(request, name) for name in vars(defaults)}
    decoding = {name: getattr(defaults, name) if value is None else value for name, value in own.items()}
    # The longest answer counts where the shortest is longer, as in transformers.
    decoding["min_tokens"] = min(decoding["min_tokens"], request.max_tokens)
    return SamplingParams(
        **decoding,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        # Stop strings are looked for in the text, where special tokens must then stand.
        skip_special_tokens=False,
        detokenize=bool(request.stop),
        temperature=request.temperature,
        n=request.n,
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _text(tokenizer: Any, request: GenerationRequest, token_ids: Sequence[int]) -> str:
    """An answer's text, as lm-eval's runner for transformers makes it: decoded as a whole, then cut."""
    if request.min_tokens:
        token_ids = _stopped(tokenizer, request.stop, token_ids)
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=not request.special_tokens)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.decode(tokenizer.eos_token_id)]
    for stop in [*request.stop, *end]:
        text = text.split(stop)[0]
    return text


def _stopped(tokenizer: Any, stops: Sequence[str], token_ids: Sequence[int]) -> Sequence[int]:
    """Tokens up to the one that completes a stop string.

    vLLM looks for none in the shortest answer. lm-eval does, after each token, in as many of the last tokens as the
    string has and two more. In the text alone a stop string of special tokens would not be found: they are left out.
    """
    windows = [(stop, len(tokenizer.encode(stop, add_special_tokens=False)) + 2) for stop in stops]
    for end in range(1, len(token_ids)):
        if any(stop in tokenizer.decode(list(token_ids[max(0, end - window) : end])) for stop, window in windows):
            return token_ids[:end]
    return token_ids


def _scoring(ids: list[int], num_common: int, last_tokens: dict[int, int], by_token_ids: bool) -> ScoringPrompt:
    common: dict[str, Any] = {}
    if num_common and by_token_ids:
        rows = [[token] for token in ids[-num_common:]]
        common = {"prompt_logprob_token_ids": np.array(rows), "prompt_logprob_start": len(ids) - num_common - 1}
    elif num_common:
        common = {"prompt_logprobs": 0}
    sampling = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=sorted(set(last_tokens.values())),
        detokenize=False,
        flat_logprobs=True,
        # Left to itself vLLM computes whole prompts where it scores any of their tokens.
        skip_reading_prefix_cache=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **common,
    )
    return ScoringPrompt(ids, sampling, num_common, last_tokens, by_token_ids)
