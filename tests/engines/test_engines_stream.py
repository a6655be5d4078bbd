"""Prompts in a given order, few at a time: a stop changes no answer before it and none after it."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from mergebench_ray.engines import GenerationRequest, LoglikelihoodRequest, VLLMEngine

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Batch

IN_FLIGHT = 4
COUNTRIES = ["France", "Italy", "Spain", "Norway", "Poland", "Greece", "Portugal", "Austria", "Hungary", "Sweden"]


@pytest.fixture
def batch(engine: VLLMEngine) -> Batch:
    """Short and long answers by turns, some with choices of several tokens, which share a context."""
    engine.restore_base()
    encode = engine.tokenizer.encode
    requests: list[Any] = []
    for number, country in enumerate(COUNTRIES):
        context = encode(f"Once upon a time a king of {country} lost his crown, and the city was")
        if number % 3 == 2:
            requests += [LoglikelihoodRequest(context, encode(f" {choice}")) for choice in ("Budapest", "Lisbon")]
        else:
            length = 4 + 9 * (number % 2)
            requests.append(GenerationRequest(context, length, min_tokens=length))
    return engine.batch(requests, in_order=True)


def answers(engine: VLLMEngine, batch: Batch, in_flight: int | None = IN_FLIGHT) -> list[Any]:
    engine.forget_prefixes()
    return [one for answered in engine.stream(batch.prompts, in_flight) for one in answered]


def unfinished(engine: VLLMEngine) -> int:
    return int(engine._llm.llm_engine.get_num_unfinished_requests())


def test_prompts_stand_in_the_order_of_their_requests(batch: Batch) -> None:
    assert [index for prompt in batch.prompts for index in prompt.requests] == list(range(batch.size))


def test_few_are_in_flight_and_the_next_of_the_order_begins_when_one_ends(
    engine: VLLMEngine, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    others: list[int] = []
    begin = engine._begin

    def note(under_way: dict[str, Any], prompt: Any) -> None:
        begun.append(prompt)
        others.append(len(under_way))
        begin(under_way, prompt)

    monkeypatch.setattr(engine, "_begin", note)
    found = answers(engine, batch)
    assert [prompt for prompt in begun if prompt in batch.prompts] == batch.prompts
    assert max(others) < IN_FLIGHT
    assert len(found) == batch.size
    assert {index for index, _ in found} == set(range(batch.size))


def test_the_first_of_the_order_are_complete_before_another_begins(
    engine: VLLMEngine, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, alone = engine._begin, IN_FLIGHT + 2
    others: list[int] = []

    def note(under_way: dict[str, Any], prompt: Any) -> None:
        others.append(len(under_way))
        begin(under_way, prompt)

    monkeypatch.setattr(engine, "_begin", note)
    engine.forget_prefixes()
    found = [index for answered in engine.stream(batch.prompts, IN_FLIGHT, alone) for index, _ in answered]
    first = [index for prompt in batch.prompts[:alone] for index in prompt.requests]
    assert others[: alone + 1] == [*range(alone), 0]
    assert max(others[alone:]) < IN_FLIGHT
    assert sorted(found[: len(first)]) == sorted(first)
    assert sorted(found) == list(range(batch.size))


def test_answers_until_a_stop_are_those_of_the_whole_and_the_next_are_those_of_a_calm_engine(
    engine: VLLMEngine, batch: Batch
) -> None:
    engine.forget_prefixes()
    of_steps = list(engine.stream(batch.prompts, IN_FLIGHT))
    whole = [one for answered in of_steps for one in answered]
    aborted = []
    for steps in (1, len(of_steps) // 2):
        engine.forget_prefixes()
        tokens = engine.tokens
        with closing(engine.stream(batch.prompts, IN_FLIGHT)) as stream:
            some = [one for answered in islice(stream, steps) for one in answered]
            aborted.append(unfinished(engine))
        assert some == whole[: len(some)]
        assert len(some) < len(whole)
        assert unfinished(engine) == 0
        assert engine.tokens > tokens  # what was thrown away counts
        assert answers(engine, batch) == whole
    assert any(aborted)


def test_what_vllm_has_begun_ahead_ends_before_its_prefix_cache_is_emptied(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs a batch is on its way when the last answer is there; a CPU never has two, so this only counts steps."""
    called: list[str] = []
    step, reset = engine._llm.llm_engine.step, engine._llm.reset_prefix_cache
    monkeypatch.setattr(engine._llm.llm_engine, "step", lambda: (called.append("step"), step())[1])
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: (called.append("reset"), reset())[1])
    engine.forget_prefixes()
    assert called == ["step"] * (engine._llm.llm_engine.vllm_config.max_concurrent_batches + 1) + ["reset"]


def test_a_stop_before_the_first_step_asks_nothing(engine: VLLMEngine, batch: Batch) -> None:
    tokens = engine.tokens
    engine.stream(batch.prompts, IN_FLIGHT).close()
    assert (engine.tokens, unfinished(engine)) == (tokens, 0)


def test_a_prompt_with_several_samples_takes_as_many_places(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = engine.tokenizer.encode("The capital of France is")
    requests = [GenerationRequest(ids, 6, temperature=1.0, n=3, seed=number) for number in range(4)]
    prompts = engine.batch(requests, in_order=True).prompts
    under_way = [unfinished(engine) for _ in engine.stream(prompts, 4)]
    assert max(under_way) <= 6  # two prompts, since the first leaves a place
    with closing(engine.stream(prompts, 4)) as stream:
        next(stream)
    assert unfinished(engine) == 0
