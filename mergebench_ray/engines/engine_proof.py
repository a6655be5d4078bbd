"""An engine proves, once at its start, that weights which it loads in place answer as from a cold start.

vLLM keeps some weights twice, packed for the processor, and whether a load reaches all copies differs by family,
processor and version. So each engine is asked for one log-probability three times: as it started, with other weights
that compute the same function (`same_function.py`) sent the way candidates are, and with the base read again. All
three must be the same number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.engines import LoglikelihoodRequest, VLLMEngine
from mergebench_ray.engines.same_function import SameFunction
from mergebench_ray.errors import InputError, refusing
from mergebench_ray.weights.checkpoint_weights import stream_of
from mergebench_ray.weights.stream import WeightStream

TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
"""Largest error of the log-probability, in nats, by what the engine computes in. A right load gives the same number
on a CPU; a weight that stays old is off by about a nat or more."""
_CONTEXT_TOKENS = 48
_ANSWER_TOKENS = 16
_CONTEXT = (
    "the small boat went slowly along the river past fields and trees until we could see old stone bridges again. "
)
_ANSWER = "KQZJX 0123456789 WVBGM; In 1850, Prime Numbers & HARVARD LAWS: 73% - YES?"


@dataclass(frozen=True)
class EngineProof:
    """What was proved.

    Attributes:
        seconds: what it took.
        error: largest difference from the cold start, in nats.
        tensors: tensors of the base.
        changed: how many of them were sent with other values.
        unknown: tensors whose place in the network is not known, for which nothing could be changed.
    """

    seconds: float
    error: float
    tensors: int
    changed: int
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        if self.unknown:
            more = f" and {len(self.unknown) - 1} more" if len(self.unknown) > 1 else ""
            proved = (
                f"the base loads again as from a cold start; that changes arrive everywhere is NOT proved, since the "
                f"place of {self.unknown[0]}{more} in the network is not known"
            )
        else:
            proved = f"{self.changed} of {self.tensors} tensors changed, then the base again, as from a cold start"
        return f"engine proved in {self.seconds:.1f} s: {proved}; log-probability off by {self.error:.0e}"


def prove(engine: VLLMEngine, base: Checkpoint, max_model_len: int) -> EngineProof:
    """Prove an engine that has just started; it holds the base at the end.

    Args:
        engine: the engine.
        base: the model that it started with.
        max_model_len: longest prompt plus answer, in tokens.

    Raises:
        InputError: if weights loaded in place do not answer as they should, naming the family.
    """
    started = time.perf_counter()
    context, answer = _prompt(engine, max_model_len)
    same = SameFunction(base, engine.norm_classes(), list(dict.fromkeys(answer)))
    renamed = [same.token(token) for token in answer]
    cold = _ask(engine, context, answer)
    with _loading(base):
        engine.load(_sent(same, base))
    changed = abs(_ask(engine, context, renamed) - cold)
    with _loading(base):
        engine.restore_base()
    again = abs(_ask(engine, context, answer) - cold)
    tolerance = TOLERANCES[engine.dtype]
    for error, what in ((changed, "after every tensor was replaced"), (again, "after the base was read again")):
        # Not a number is an error too.
        if not error <= tolerance:
            raise InputError(
                f"{_family(base)}: vLLM does not take its weights in place: {what}, the log-probability of "
                f"{len(answer)} tokens is off by {error:.2g} (at most {tolerance:g}); "
                "such models cannot be searched here"
            )
    unchanged = len(same.unchanged)
    seconds = time.perf_counter() - started
    return EngineProof(
        seconds, max(changed, again), len(base.tensors), len(base.tensors) - unchanged, tuple(same.unknown)
    )


def _prompt(engine: VLLMEngine, max_model_len: int) -> tuple[list[int], list[int]]:
    """A context longer than a block of the prefix cache, and an answer of tokens that are not in it."""
    encode = engine.tokenizer.encode
    words = encode(_CONTEXT, add_special_tokens=False) or [0]
    context = (words * _CONTEXT_TOKENS)[: min(_CONTEXT_TOKENS, max(1, max_model_len - _ANSWER_TOKENS - 1))]
    # A small vocabulary of words knows none of these: any tokens will do.
    for tokens in (encode(_ANSWER, add_special_tokens=False), range(len(engine.tokenizer))):
        if answer := [token for token in tokens if token not in context]:
            break
    return context, answer[: min(_ANSWER_TOKENS, max_model_len - len(context) - 1)]


def _ask(engine: VLLMEngine, context: Sequence[int], answer: Sequence[int]) -> float:
    return engine.loglikelihood([LoglikelihoodRequest(context, answer)])[0][0]


def _sent(same: SameFunction, base: Checkpoint) -> WeightStream:
    """The other weights, in a type that holds the stored ones exactly."""
    stored = {name: info for name, info in base.tensors.items() if info.dtype.is_floating_point}
    dtypes = {info.dtype for info in stored.values()}
    dtype = dtypes.pop() if dtypes in ({torch.bfloat16}, {torch.float16}) else torch.float32
    shapes = {name: info.shape for name, info in stored.items()}
    return stream_of("proof", shapes, dtype, base.family, lambda name: iter([same.change(name, base.read(name))]))


def _loading(base: Checkpoint) -> AbstractContextManager[None]:
    """A load that fails is one line that names the family."""
    return refusing(f"{_family(base)}: vLLM cannot take its weights in place", "such models cannot be searched here")


def _family(base: Checkpoint) -> str:
    return f"{base}, model_type {base.config.get('model_type')}"
