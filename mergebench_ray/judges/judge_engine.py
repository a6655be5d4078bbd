"""A judge and its engine: what it is shown, what it says, and all that waits asked in one batch."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config.judge import Judge
from mergebench_ray.digests import canonical_digest
from mergebench_ray.engines import GenerationRequest, VLLMEngine
from mergebench_ray.engines.tokens import encode_texts
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.judges.parsers import PARSERS, Parser, read_answer
from mergebench_ray.tasks.task_files import Verdict, find_function

Pair = tuple[str, str]
"""A request and the response to it."""


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a response.

    Attributes:
        answer: its own words; in brackets, why it was not asked.
        verdict: what they mean; None where they do not parse.
    """

    answer: str
    verdict: Verdict | None


class JudgedPairs(NamedTuple):
    """A judgement for each pair, the seconds in which the judge computed, and the tokens that it read and wrote."""

    judgements: list[Judgement]
    seconds: float
    tokens: int


@dataclass(frozen=True)
class FoundJudge:
    """A judge whose model is at hand.

    Attributes:
        name: what tasks call it.
        judge: its settings.
        checkpoint: its model.
        parser_folder: where a parser that is not built in is looked for.
    """

    name: str
    judge: Judge
    checkpoint: Checkpoint
    parser_folder: Path

    @property
    def digest(self) -> str:
        """SHA-256 of all that its verdicts depend on."""
        asked = {"prompt", "parser", "max_answer_tokens", "temperature", "stop", "max_model_len"}
        return canonical_digest([self.checkpoint.digest(), self.judge.model_dump(mode="json", include=asked)])

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer that settings and model allow, in tokens."""
        config = self.checkpoint.config
        parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
        said = [part["max_position_embeddings"] for part in parts if "max_position_embeddings" in part]
        return min([self.judge.max_model_len, *(one for one in said if isinstance(one, int) and one > 0)])

    def find_parser(self) -> Parser:
        """The parser of its answers.

        Raises:
            InputError: if there is none of that name.
        """
        name = self.judge.parser
        check_parser_name(self.name, name)
        return (
            PARSERS[name] if name in PARSERS else find_function(name, self.parser_folder, f"judge {self.name}: parser")
        )


def check_parser_name(judge: str, parser: str) -> None:
    """Refuse a parser that is neither built in nor could be a function of a file.

    Raises:
        InputError: naming judge and parser.
    """
    if parser not in PARSERS and "." not in parser:
        raise InputError(
            f"judge {judge}: no parser {parser!r}; {nearest(parser, PARSERS)} (or MODULE.FUNCTION of a file beside "
            "the tasks)"
        )


class JudgeEngine:
    """A judge and its engine. A plain class; `running_judges` puts it into a Ray actor.

    The engine starts with `start` or when it is first needed. Every pair of request and response is judged once: other
    candidates, or another split, that give the same response get the same judgement.

    May be called from several threads, one for each engine whose answers it judges: all pairs that wait, of whichever
    candidates, are asked in one batch. The judge's own engine is used by one thread alone.

    Args:
        found: the judge.
        make_engine: starts its engine, with the model's own weights.
    """

    def __init__(self, found: FoundJudge, make_engine: Callable[[], VLLMEngine]) -> None:
        self._found = found
        self._make_engine = make_engine
        self._parse = found.find_parser()
        self._asking = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Pair] = {}
        self._known: dict[bytes, Judgement] = {}
        self._costs: dict[bytes, tuple[float, int]] = {}

    def start(self) -> None:
        """Start the engine if it is not running yet."""
        self._asking.submit(lambda: self._engine).result()

    def judge(self, pairs: Sequence[Pair]) -> JudgedPairs:
        """Judge all pairs, those that are new in one batch.

        A prompt that does not fit the model is not asked, since cutting it would cut the question: its answer counts
        as one that does not parse.
        """
        keys = [_key(pair) for pair in pairs]
        with self._lock:
            given = dict(zip(keys, pairs, strict=True))
            new = {key: pair for key, pair in given.items() if key not in self._known and key not in self._waiting}
            self._waiting |= new
        self._asking.submit(self._ask_waiting).result()
        costs = [self._costs.pop(key) for key in new]
        seconds, tokens = sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
        return JudgedPairs([self._known[key] for key in keys], seconds, tokens)

    def _ask_waiting(self) -> None:
        with self._lock:
            batch = dict(self._waiting)
        if batch:
            self._ask(batch)
        with self._lock:
            for key in batch:
                del self._waiting[key]

    def _ask(self, pairs: Mapping[bytes, Pair]) -> None:
        settings, engine = self._found.judge, self._engine
        prompts = encode_texts(engine.tokenizer, [settings.ask(*pair) for pair in pairs.values()])
        room = self._found.max_model_len - settings.max_answer_tokens
        requests: dict[bytes, GenerationRequest] = {}
        for key, prompt in zip(pairs, prompts, strict=True):
            if len(prompt) > room:
                self._known[key] = Judgement(f"[not asked: {len(prompt)} tokens do not fit {room}]", None)
                self._costs[key] = (0.0, 0)
                continue
            requests[key] = GenerationRequest(
                prompt_token_ids=prompt,
                max_tokens=settings.max_answer_tokens,
                stop=settings.stop,
                temperature=settings.temperature,
                seed=int.from_bytes(key[:4], "big"),
            )
        before = engine.busy_seconds
        answers = engine.generate(list(requests.values()))
        tokens = [len(requests[key].prompt_token_ids) + len(one.token_ids) for key, one in zip(requests, answers)]
        seconds = (engine.busy_seconds - before) / max(1, sum(tokens))
        for key, answer, count in zip(requests, answers, tokens, strict=True):
            self._known[key] = Judgement(answer.text, read_answer(self._parse, answer.text, self._found.name))
            self._costs[key] = (seconds * count, count)

    @functools.cached_property
    def _engine(self) -> VLLMEngine:
        return self._make_engine()


def _key(pair: Pair) -> bytes:
    request, response = pair
    return hashlib.sha256(f"{len(request)} {request}{response}".encode("utf-8", "surrogatepass")).digest()
