from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from lm_eval.api.task import Task
from transformers import AutoModelForCausalLM

from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.engines.tokens import encode_pairs, encode_texts
from mergebench_ray.evaluation import grading
from mergebench_ray.evaluation.evaluator import Evaluator
from mergebench_ray.evaluation.order import Order, Share
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.scores import Scores
from mergebench_ray.tasks import task_files
from mergebench_ray.tasks.loading import load_tasks
from task_files import capital_items, write_choice_task, write_generation_task, write_lines, write_suite
from tiny_models import tiny_adapter

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Prompt

ENGINE_LENGTH = 1024  # of the session's engine


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_choice_task(folder)
    write_generation_task(folder)
    domains = {"choice": {"capital_choice": "acc"}, "text": {"capital_text": "exact_match"}}
    return write_suite(tmp_path, domains)


@pytest.fixture
def evaluator(suite: Suite, engine: VLLMEngine) -> Evaluator:
    engine.restore_base()
    return Evaluator(suite, EvaluationOptions(validation_items=2, test_items=2), lambda: engine)


def test_the_same_weights_score_the_same_twice(evaluator: Evaluator) -> None:
    first, second = evaluator.score("validation"), evaluator.score("validation")
    assert first.items == second.items
    assert first.domains == second.domains
    assert {domain: result.items for domain, result in first.domains.items()} == {"choice": 2, "text": 2}


def test_validation_and_test_items_are_never_mixed(evaluator: Evaluator) -> None:
    validation, test = evaluator.score("validation"), evaluator.score("test")
    assert (validation.split, test.split) == ("validation", "test")
    prompts = [{row["prompt_digest"] for row in scores.items} for scores in (validation, test)]
    assert not prompts[0] & prompts[1]
    assert {row["item"] for row in validation.items} == {f"capital-{number}" for number in (2, 3)}
    assert {row["item"] for row in test.items} == {f"capital-{number}" for number in (6, 7)}


def test_a_second_candidate_builds_and_tokenises_nothing(
    evaluator: Evaluator, engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    counted = {
        (task_files.TaskManager, "load"): "task",
        (type(engine.tokenizer), "__call__"): "tokenizer",
        (type(engine.tokenizer), "encode"): "tokenizer",
    }
    for (owner, name), kind in counted.items():
        original = getattr(owner, name)

        def count(*args: Any, _original: Any = original, _kind: str = kind, **kwargs: Any) -> Any:
            calls.append(_kind)
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, count)
    evaluator.score("validation")
    assert {"task", "tokenizer"} <= set(calls)
    calls.clear()
    evaluator.score("validation")
    assert calls == []


class InstantEngine:
    """Has the tokenizer and the batches of a real engine, but answers at once: a real one takes minutes for these."""

    weight_version, busy_seconds, tokens, dtype, device = "instant", 0.0, 0, "float32", "none"

    def __init__(self, engine: VLLMEngine) -> None:
        self.tokenizer, self.batch, self.forget_prefixes = engine.tokenizer, engine.batch, engine.forget_prefixes

    def stream(self, prompts: Sequence[Prompt], in_flight: int | None, alone: int) -> Iterator[list[tuple[int, Any]]]:
        for prompt in prompts:
            yield [(index, (-float(index), False)) for index in prompt.requests]


@pytest.mark.timeout(120)
def test_a_share_without_an_item_of_the_last_look_waits_for_the_first_look_alone(
    tmp_path: Path, engine: VLLMEngine
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_choice_task(folder)
    suite = write_suite(tmp_path, {"choice": {"capital_choice": "acc"}}, max_model_len=ENGINE_LENGTH)
    evaluator = Evaluator(suite, EvaluationOptions(), lambda: cast(VLLMEngine, InstantEngine(engine)))
    order = Order((4, 2, 0, 3, 1), in_flight=1, alone=2, looks=(2, 4))
    assert [list(look) for look in evaluator.looks("test", order, Share(1, 2))] == [[2], [3], []]


def test_of_5000_items_a_second_candidate_builds_and_tokenises_nothing(
    tmp_path: Path, engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import SamplingParams

    from mergebench_ray.engines.batch import Batch

    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [{**capital_items(0, 1)[0], "id": str(number), "country": f"Land {number}"} for number in range(5000)]
    write_lines(folder / "test.jsonl", items)
    write_choice_task(folder)
    suite = write_suite(tmp_path, {"choice": {"capital_choice": "acc"}}, max_model_len=ENGINE_LENGTH)
    evaluator = Evaluator(suite, EvaluationOptions(), lambda: cast(VLLMEngine, InstantEngine(engine)))
    calls: list[str] = []
    for owner, name in (
        (task_files.TaskManager, "load"),
        (type(engine.tokenizer), "__call__"),
        (Task, "fewshot_context"),
        (Batch, "__init__"),
        (SamplingParams, "__init__"),
    ):
        original = getattr(owner, name)

        def count(*args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, count)
    first = evaluator.score("test")
    assert calls
    calls.clear()
    prepared = evaluator.stats().prepare_seconds
    second = evaluator.score("test")
    assert calls == []
    assert evaluator.stats().prepare_seconds == prepared
    assert len(first.items) == 5000
    assert first.items == second.items


def test_an_empty_answer_is_graded(tmp_path: Path, engine: VLLMEngine) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    decoding = {"until": [" "], "max_gen_toks": 6, "temperature": 0.0, "do_sample": False}
    write_generation_task(folder, generation_kwargs=decoding)
    suite = write_suite(tmp_path, {"text": {"capital_text": "exact_match"}})
    engine.restore_base()
    scores = Evaluator(suite, EvaluationOptions(test_items=2), lambda: engine).score("test")
    assert [(row["answer"], row["score"]) for row in scores.items] == [("", 0.0), ("", 0.0)]


def test_programs_are_graded_while_other_answers_are_still_made(
    tmp_path: Path, engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    scorer = "def score(documents, answers):\n    return [{'exact_match': 1.0} for _ in documents]\n"
    (folder / "scorer.py").write_text(scorer)
    write_generation_task(folder, "programs", metadata={"version": 1.0, "batch_scorer": "scorer.score"})
    write_generation_task(folder, "stories", generation_kwargs={"until": [], "max_gen_toks": 60, "do_sample": False})
    suite = write_suite(tmp_path, {"text": {"stories": "exact_match", "programs": "exact_match"}})
    prepared = PreparedSplit("test", load_tasks(suite, "test", EvaluationOptions()), engine.tokenizer, 256)
    happened: list[str] = []
    stream, grade = engine.stream, grading.grade

    def note_answers(prompts: Sequence[Prompt], in_flight: int | None, alone: int) -> Iterator[Any]:
        missing = sum(len(prompt.requests) for prompt in prompts)
        for answered in stream(prompts, in_flight, alone):
            missing -= len(answered)
            if not missing:
                happened.append("all answered")
            yield answered

    def note_grading(task: Any, *arguments: Any) -> list[Any]:
        happened.append(task.name)
        return grade(task, *arguments)

    monkeypatch.setattr(engine, "stream", note_answers)
    monkeypatch.setattr("mergebench_ray.evaluation.look_grader.grade", note_grading)
    engine.restore_base()
    scores = prepared.score(engine)
    assert happened == ["programs", "all answered", "stories"]
    assert scores.tasks["programs"].value == 1.0


def test_the_items_are_known_before_any_engine_starts(suite: Suite) -> None:
    def start() -> VLLMEngine:
        raise AssertionError("the engine was started")

    evaluator = Evaluator(suite, EvaluationOptions(), start)
    assert evaluator.items_digest("validation") != evaluator.items_digest("test")
    assert evaluator.items_digest("validation", ["text"]) != evaluator.items_digest("validation")


def test_a_chosen_domain_is_scored_alone_on_the_same_items(evaluator: Evaluator) -> None:
    everything = evaluator.score("validation")
    alone = evaluator.score("validation", ["text"])
    assert set(alone.domains) == {"text"}
    same = [row["prompt_digest"] for row in everything.items if row["domain"] == "text"]
    assert [row["prompt_digest"] for row in alone.items] == same


def test_times_and_tokens_are_those_of_the_engine(evaluator: Evaluator) -> None:
    before = evaluator.stats()
    scores = evaluator.score("validation")
    after = evaluator.stats()
    assert 0 < scores.engine_seconds <= scores.seconds
    assert scores.tokens == after.tokens - before.tokens > 0
    assert after.busy_seconds - before.busy_seconds == pytest.approx(scores.engine_seconds)
    assert scores.version == "base"


def test_log_likelihoods_are_those_of_transformers(evaluator: Evaluator, engine: VLLMEngine, base_folder: Path) -> None:
    scores = evaluator.score("validation", ["choice"])
    compare_likelihoods(
        scores, engine, AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, trust_remote_code=False)
    )


def test_a_specialist_scored_as_it_is_answers_as_its_weights_do_in_transformers(
    evaluator: Evaluator, engine: VLLMEngine, base_folder: Path, tmp_path: Path
) -> None:
    adapter = tiny_adapter(tmp_path / "adapter", base_folder, seed=1, rank=1)
    base, specialist = resolve(str(base_folder)), resolve(f"{base_folder}+{adapter}")
    before = evaluator.score("validation", ["choice"])
    evaluator.load_checkpoint(specialist, base)
    scores = evaluator.score("validation", ["choice"])
    assert scores.version == specialist.digest()
    assert evaluator.load_checkpoint(specialist, base).tensors == 0
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        for name, info in specialist.tensors.items():
            model.get_parameter(name).copy_(specialist.read(name).view(info.shape))
    compare_likelihoods(scores, engine, model)
    evaluator.load_checkpoint(base, base)
    assert evaluator.score("validation", ["choice"]).items == before.items != scores.items


def compare_likelihoods(scores: Scores, engine: VLLMEngine, model: Any) -> None:
    """Both compute in float32."""
    assert scores.items
    for row in scores.items:
        number = int(row["item"].removeprefix("capital-"))
        item = capital_items(number, 1)[0]
        pairs = [(f"The capital of {item['country']} is", f" {choice}") for choice in item["choices"]]
        encoded = encode_pairs(engine.tokenizer, pairs)
        expected = [reference_likelihood(model, context, continuation) for context, continuation in encoded]
        assert json.loads(row["answer"]) == pytest.approx(expected, abs=1e-3)


def reference_likelihood(model: Any, context: Sequence[int], continuation: Sequence[int]) -> float:
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        likelihoods = model(ids).logits[0].log_softmax(-1)
    start = len(context) - 1
    return float(sum(likelihoods[start + place, token] for place, token in enumerate(continuation)))


def test_a_prompt_longer_than_the_context_is_cut_and_counted(tmp_path: Path, engine: VLLMEngine) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_generation_task(folder, doc_to_text="word " * 1200 + "The capital of {{country}} is")
    long = write_suite(tmp_path, {"text": {"capital_text": "exact_match"}}, max_model_len=ENGINE_LENGTH)
    prepared = PreparedSplit(
        "test", load_tasks(long, "test", EvaluationOptions(test_items=1)), engine.tokenizer, ENGINE_LENGTH
    )
    engine.restore_base()
    scores = prepared.score(engine)
    assert scores.truncated == 1
    assert all(row["answer"] for row in scores.items)


def test_a_context_ends_where_its_continuation_begins(engine: VLLMEngine) -> None:
    tokenizer = engine.tokenizer
    pairs = [("The capital of France is", " Paris"), ("The capital of France is ", "Paris"), ("", "Paris")]
    plain, moved, empty = encode_pairs(tokenizer, pairs)
    assert plain == moved
    assert tokenizer.decode(plain[1]) == " Paris"
    assert empty == ([tokenizer.bos_token_id], encode_texts(tokenizer, ["Paris"])[0])
