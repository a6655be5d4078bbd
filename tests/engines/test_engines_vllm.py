from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergebench_ray.engines import Generation, GenerationRequest, LoglikelihoodRequest, VLLMEngine
from mergebench_ray.engines.bench import pace_of
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.manifest import WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import MappedFiles
from mergebench_ray.weights.stream import WeightStream
from weight_server import Factors, WeightServer, factor_of

VARIANTS: dict[str, Factors] = {
    "calm": {"down_proj": 0.9, "self_attn.v_proj": 1.1},
    "one-layer": {"layers.12.mlp.gate_proj": 0.5},
    "sharp": {"self_attn.q_proj": 1.3, "model.norm": 1.2},
    "whole": {"embed_tokens": 0.8, "self_attn.o_proj": 1.1},
}
FORGETFUL: Factors = {"self_attn.v_proj": 0.0}
"""Attention that finds nothing: its keys and values cannot answer like any other model's."""
LIKELIHOOD_ERROR = 1e-3
"""Two float32 computations of a log-probability of up to 16 tokens differ by less."""
QUESTIONS = [
    "Name the capital of France.",
    "What is 12 plus 30?",
    "Write a Python function that returns the larger of two numbers.",
    "Why is the sky blue?",
]


@pytest.fixture(scope="module")
def manifests(base_folder: Path) -> Iterator[dict[str, WeightManifest]]:
    server = WeightServer(base_folder, VARIANTS | {"forgetful": FORGETFUL})
    yield server.manifests
    server.close()


def prompt(engine: VLLMEngine, question: str) -> list[int]:
    message = [{"role": "user", "content": question}]
    return engine.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


def requests(engine: VLLMEngine, max_tokens: int = 8) -> list[GenerationRequest]:
    return [GenerationRequest(prompt(engine, question), max_tokens) for question in QUESTIONS]


def base_answers(engine: VLLMEngine) -> list[Generation]:
    engine.restore_base()
    return engine.generate(requests(engine))


def reference_model(folder: Path, factors: Factors) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(factor_of(name, factors))
    return model.float()


def logits_of_answer(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> torch.Tensor:
    """Logits that predict each token of an answer, [tokens, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *answer_ids]])).logits[0]
    return logits[len(prompt_ids) - 1 : -1]


@pytest.mark.parametrize("version", VARIANTS)
def test_weights_of_another_process_answer_as_a_fresh_model_with_them(
    engine: VLLMEngine, manifests: dict[str, WeightManifest], base_folder: Path, version: str
) -> None:
    engine.load(manifests[version])
    model = reference_model(base_folder, VARIANTS[version])
    answers = engine.generate(requests(engine))
    for request, answer in zip(requests(engine), answers):
        logits = logits_of_answer(model, request.prompt_token_ids, answer.token_ids)
        chosen = logits[range(len(answer.token_ids)), list(answer.token_ids)]
        # Greedy decoding may choose between ties of two roundings, nothing else.
        assert (logits.max(dim=-1).values - chosen).max() < LIKELIHOOD_ERROR
    pairs = [LoglikelihoodRequest(r.prompt_token_ids, a.token_ids) for r, a in zip(requests(engine), answers)]
    for pair, (total, _) in zip(pairs, engine.loglikelihood(pairs)):
        logprobs = logits_of_answer(model, pair.context_token_ids, pair.continuation_token_ids).log_softmax(-1)
        expected = logprobs[range(len(pair.continuation_token_ids)), list(pair.continuation_token_ids)].sum().item()
        assert total == pytest.approx(expected, abs=LIKELIHOOD_ERROR)


def test_the_weight_version_is_the_manifests(engine: VLLMEngine, manifests: dict[str, WeightManifest]) -> None:
    engine.restore_base()
    assert engine.weight_version == "base"
    report = engine.load(manifests["calm"])
    assert (engine.weight_version, report.version) == ("calm", "calm")
    assert (report.tensors, report.num_bytes) == (271, 106_203_456 * 2)


def test_only_layers_that_changed_are_loaded(engine: VLLMEngine, manifests: dict[str, WeightManifest]) -> None:
    engine.load(manifests["calm"])
    assert engine.load(manifests["calm"]).tensors == 0
    answers = engine.generate(requests(engine))

    plain = manifests["one-layer"]
    altered = {t.name: t for t in plain.tensors if ".layers.12." in t.name}
    mixed = dataclasses.replace(
        manifests["calm"], version="mixed", tensors=tuple(altered.get(t.name, t) for t in manifests["calm"].tensors)
    )
    report = engine.load(mixed)
    assert report.tensors == 9
    mixed_answers = engine.generate(requests(engine))
    assert mixed_answers != answers

    engine.load(plain)
    engine.load(dataclasses.replace(mixed, version="again"))
    assert engine.generate(requests(engine)) == mixed_answers


def test_the_order_of_candidates_changes_no_answer_and_back_to_base_gives_the_first_token_for_token(
    engine: VLLMEngine, manifests: dict[str, WeightManifest]
) -> None:
    asked = requests(engine, 16)[:2]
    engine.restore_base()
    first = engine.generate(asked)
    answers: dict[str, list[list[Generation]]] = {version: [] for version in ("calm", "one-layer", "whole")}
    for version in [*answers, *reversed(answers)]:
        engine.load(manifests[version])
        answers[version].append(engine.generate(asked))
    assert all(one == other != first for one, other in answers.values())
    engine.restore_base()
    assert engine.generate(asked) == first


def test_a_manifest_of_fewer_tensors_leaves_the_others_to_the_base(
    engine: VLLMEngine, manifests: dict[str, WeightManifest]
) -> None:
    few = tuple(tensor for tensor in manifests["one-layer"].tensors if ".layers.12." in tensor.name)
    engine.restore_base()
    engine.load(dataclasses.replace(manifests["one-layer"], tensors=few))
    alone = engine.generate(requests(engine))
    engine.load(manifests["sharp"])
    engine.load(dataclasses.replace(manifests["one-layer"], tensors=few))
    assert engine.generate(requests(engine)) == alone


def test_a_cached_prefix_never_answers_for_new_weights(
    engine: VLLMEngine, manifests: dict[str, WeightManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only whole blocks of the prefix cache are read again, so only a prompt longer than one can hit.
    colours = ["red", "green", "blue", "white", "black"]
    facts = " ".join(f"Box {i} is {colours[i * 7 % 5]} and weighs {i * 13 % 29} kilograms." for i in range(18))
    request = GenerationRequest(prompt(engine, f"{facts} Describe box 3 and box 4."), 6)
    assert len(request.prompt_token_ids) > 256
    engine.load(manifests["calm"])
    fresh = engine.generate([request])

    engine.load(manifests["forgetful"])
    engine.generate([request])
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.load(manifests["calm"])
    assert engine.generate([request]) != fresh, "without the reset, keys and values of the former weights answer"

    engine.load(manifests["forgetful"])
    engine.generate([request])
    engine.load(manifests["calm"])
    assert engine.generate([request]) == fresh


def test_a_prefix_cache_that_cannot_be_reset_is_an_error(
    engine: VLLMEngine, manifests: dict[str, WeightManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = base_answers(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(RuntimeError, match="prefix cache"):
            engine.load(manifests["calm"])
    with pytest.raises(RuntimeError, match="undefined"):
        engine.generate(requests(engine))
    assert base_answers(engine) == first


def test_a_load_that_fails_half_way_leaves_no_weights_to_answer_with(
    engine: VLLMEngine, manifests: dict[str, WeightManifest]
) -> None:
    engine.load(manifests["calm"])
    answers = engine.generate(requests(engine))

    sharp = manifests["sharp"]
    middle = sharp.tensors[len(sharp.tensors) // 2]
    wrong_shape = dataclasses.replace(middle, shape=(*middle.shape, 1, 1))
    broken = tuple(wrong_shape if tensor is middle else tensor for tensor in sharp.tensors)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        engine.load(dataclasses.replace(sharp, tensors=broken))
    with pytest.raises(RuntimeError, match="undefined"):
        engine.generate(requests(engine))
    with pytest.raises(RuntimeError, match="undefined"):
        engine.loglikelihood([LoglikelihoodRequest([1, 2], [3])])

    assert engine.load(manifests["calm"]).tensors == len(sharp.tensors)
    assert engine.generate(requests(engine)) == answers


def streamed(manifest: WeightManifest, bucket_bytes: int, fails_after: int | None = None) -> WeightStream:
    """The same weights, in buckets; so small that a layer is in several, all fused modules are cut."""
    files = MappedFiles()

    def read(tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        for number, tensor in enumerate(tensors):
            if number == fails_after:
                raise FileNotFoundError("a shard is gone")
            pieces = list(map(dataclasses.astuple, tensor.pieces))
            yield files.read([tensor.count], torch.bfloat16, pieces).view(torch.uint8).numpy()

    return WeightStream(
        manifest.version, manifest.dtype, manifest.tensors, family_of("llama"), read, bucket_bytes=bucket_bytes
    )


@pytest.mark.parametrize("bucket_bytes", [1, 3_000_000, 64 << 20])
def test_weights_that_come_in_buckets_are_those_that_come_at_once(
    engine: VLLMEngine, manifests: dict[str, WeightManifest], bucket_bytes: int
) -> None:
    engine.load(manifests["calm"])
    calm = engine.generate(requests(engine))
    engine.load(manifests["sharp"])
    at_once = engine.loglikelihood([LoglikelihoodRequest(prompt(engine, QUESTIONS[0]), [5, 6, 7])])
    report = engine.load(streamed(manifests["calm"], bucket_bytes))
    assert (report.tensors, report.version) == (271, "calm")
    assert engine.generate(requests(engine)) == calm
    engine.load(streamed(manifests["sharp"], bucket_bytes))
    assert engine.loglikelihood([LoglikelihoodRequest(prompt(engine, QUESTIONS[0]), [5, 6, 7])]) == at_once
    assert engine.load(streamed(manifests["sharp"], bucket_bytes)).num_bytes == 0


def test_a_stream_that_ends_half_way_leaves_no_weights_to_answer_with(
    engine: VLLMEngine, manifests: dict[str, WeightManifest]
) -> None:
    engine.load(manifests["calm"])
    answers = engine.generate(requests(engine))
    with pytest.raises(FileNotFoundError, match="a shard is gone"):
        engine.load(streamed(manifests["sharp"], 3_000_000, fails_after=100))
    with pytest.raises(RuntimeError, match="undefined"):
        engine.generate(requests(engine))
    assert engine.load(streamed(manifests["calm"], 3_000_000)).tensors == len(manifests["calm"].tensors)
    assert engine.generate(requests(engine)) == answers


def test_memory_that_is_gone_is_an_error_and_the_next_load_sends_everything(
    engine: VLLMEngine, manifests: dict[str, WeightManifest], base_folder: Path
) -> None:
    server = WeightServer(base_folder, {"gone": {"o_proj": 1.2}})
    server.close()
    with pytest.raises(OSError, match="/proc/"):
        engine.load(server.manifests["gone"])
    assert len(engine.changed(manifests["calm"])) == 271
    engine.load(manifests["calm"])
    assert engine.generate(requests(engine))


def test_answers_come_in_the_order_of_the_requests_and_are_counted(engine: VLLMEngine) -> None:
    engine.restore_base()
    asked = [GenerationRequest(prompt(engine, question), 4 + 3 * i) for i, question in enumerate(QUESTIONS)]
    busy, tokens = engine.busy_seconds, engine.tokens
    engine.forget_prefixes()
    answers = engine.generate(asked)
    engine.forget_prefixes()
    assert engine.generate(asked[::-1]) == answers[::-1]
    assert all(len(answer.token_ids) <= request.max_tokens for answer, request in zip(answers, asked))
    assert engine.busy_seconds > busy
    lengths = [len(request.prompt_token_ids) + len(answer.token_ids) for request, answer in zip(asked, answers)]
    assert engine.tokens - tokens == 2 * sum(lengths)
    assert engine.generate([]) == []


def test_a_stop_string_ends_an_answer_and_is_left_out(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, QUESTIONS[0])
    whole = engine.generate([GenerationRequest(ids, 16)])[0].text
    cut = engine.generate([GenerationRequest(ids, 16, stop=["Paris"])])[0].text
    assert "Paris" in whole
    assert cut == whole.split("Paris")[0]


def test_equal_seeds_sample_equal_answers(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, "Tell me a story.")
    sampled = GenerationRequest(ids, 16, temperature=1.0, top_p=0.95, n=3, seed=7)
    first, again, other = engine.generate([sampled, sampled, dataclasses.replace(sampled, seed=8)])
    assert len(first.others) == 2
    assert len({first.text, *first.others}) > 1
    assert first == again
    assert first != other


def test_a_greedy_answer_is_recognised_as_greedy(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, QUESTIONS[1])
    answer = engine.generate([GenerationRequest(ids, 6)])[0].token_ids
    unlikely = [*answer[:-1], engine.tokenizer.encode(" zebra")[0]]
    (likely_sum, likely_greedy), (unlikely_sum, unlikely_greedy) = engine.loglikelihood(
        [LoglikelihoodRequest(ids, answer), LoglikelihoodRequest(ids, unlikely)]
    )
    assert likely_greedy
    assert not unlikely_greedy
    assert 0 >= likely_sum > unlikely_sum


def test_a_prompt_that_does_not_fit_loses_its_oldest_tokens(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, "Continue: " + "the cat sat on the mat, " * 300)
    assert len(ids) > 1024
    assert engine.generate([GenerationRequest(ids, 8)]) == engine.generate([GenerationRequest(ids[-1016:], 8)])
    kept = engine.loglikelihood([LoglikelihoodRequest(ids, [5, 6]), LoglikelihoodRequest(ids[-1023:], [5, 6])])
    assert kept[0] == kept[1]


def test_requests_that_cannot_be_answered_are_refused(engine: VLLMEngine) -> None:
    engine.restore_base()
    with pytest.raises(InputError, match="max_model_len 1024"):
        engine.generate([GenerationRequest([1, 2], 1024)])
    for empty in (LoglikelihoodRequest([], [1]), LoglikelihoodRequest([1], [])):
        with pytest.raises(InputError, match="at least one token"):
            engine.loglikelihood([empty])


def test_sampled_prompts_that_fill_more_than_one_step_are_answered(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, "Continue: " + "the cat sat on the mat, " * 300)
    requests = [
        GenerationRequest([*ids[number : number + 900], 5], 2, temperature=0.8, n=2, seed=number) for number in range(5)
    ]
    scheduler = engine._llm.llm_engine.vllm_config.scheduler_config
    assert sum(len(request.prompt_token_ids) for request in requests) > scheduler.max_num_batched_tokens
    assert all(answer.text is not None and len(answer.others) == 1 for answer in engine.generate(requests))


def test_continuations_score_as_in_transformers_whatever_they_share(engine: VLLMEngine, base_folder: Path) -> None:
    """Single tokens of one context, long ones with a common beginning, one that holds another, and one twice."""
    engine.restore_base()
    encode = engine.tokenizer.encode
    context = encode("The capital cities of the countries of Europe are known to most. The capital of France is" * 2)
    endings = [" Paris", " Rome", " not Paris", " not Paris at all", " not", " not Rome", " Paris"]
    asked = [LoglikelihoodRequest(context, encode(ending)) for ending in endings]
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, trust_remote_code=False)
    for _ in range(2):  # the second time the prefix cache holds the continuations too
        for request, (likelihood, greedy) in zip(asked, engine.loglikelihood(asked)):
            tokens = list(request.continuation_token_ids)
            likelihoods = logits_of_answer(model, context, tokens).log_softmax(-1)
            assert likelihood == pytest.approx(
                float(likelihoods[range(len(tokens)), tokens].sum()), abs=LIKELIHOOD_ERROR
            )
            assert greedy == (likelihoods.argmax(-1).tolist() == tokens)


def test_answers_are_handed_over_one_by_one(engine: VLLMEngine) -> None:
    engine.restore_base()
    ids = prompt(engine, QUESTIONS[0])
    batch = engine.batch([GenerationRequest(ids, 12), LoglikelihoodRequest(ids, [5]), GenerationRequest(ids, 2)])
    came: list[int] = []
    answers = engine.answer(batch, lambda index, _answer: came.append(index))
    assert sorted(came) == [0, 1, 2]
    assert came[-1] == 0
    assert isinstance(answers[1], tuple)


def test_a_step_of_many_sequences_takes_less_than_as_many_steps(engine: VLLMEngine) -> None:
    engine.restore_base()
    pace = pace_of(engine, sequences=8, steps=8)
    assert 0 < pace.together < 8 * pace.alone
    assert pace.prompt_tokens_per_second > 1 / pace.alone
