"""Answers and likelihoods beside lm-eval's runner for transformers, on a tiny model that often says special tokens."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_file_task_name, make_table

from mergebench_ray.config import EngineOptions
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.evaluation.asked import Questions
from mergebench_ray.evaluation.estimates import estimate_mean
from mergebench_ray.evaluation.graded import GradedItem
from mergebench_ray.evaluation.lm_eval_results import ModelFacts, lm_eval_results, write_lm_eval_files
from mergebench_ray.evaluation.order import Share
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.questions import question_rows
from mergebench_ray.tasks.scored_task import Item, ScoredTask
from task_files import write_choice_task, write_generation_task, write_suite, write_text_task
from tiny_models import tiny_llama

LENGTH = 128
DRAWN = random.Random(0)
TEXTS = ["".join(DRAWN.choice("abcdefgh <>|") for _ in range(DRAWN.randint(1, 30))) for _ in range(8)]
SPECIAL = [f"{text[:4]}<s>{text[4:]}</s><pad>" for text in TEXTS]
TOO_LONG = [text * 40 for text in TEXTS[:3]]
VARIED = {"max_gen_toks": 40, "repetition_penalty": 1.1}
LETTERS = [chr(code) for code in range(33, 127)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte a token, so that its answers are of all kinds: special tokens, half characters, stop texts.

    Its own file of decoding has a penalty, which holds where a task has none, as in transformers.
    """
    folder = tiny_llama(tmp_path_factory.mktemp("model"), seed=3, dtype="float32", initializer_range=0.4)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 1.05}))
    return folder


# Until the session's end: vLLM's engines of one process share its groups, which the first to be closed takes down.
@pytest.fixture(scope="session")
def tiny_engine(model: Path) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(model, EngineOptions(dtype="float32", kv_cache_gib=0.1), LENGTH)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def lm_eval(model: Path) -> HFLM:
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1, max_length=LENGTH)


def asked(engine: VLLMEngine, kind: Any, arguments: list[tuple[Any, ...]], repeats: int = 1) -> list[list[Any]]:
    """Answers of the engine to requests of a made-up task."""
    instances = [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("t", number, repeats))
        for number, one in enumerate(arguments)
    ]
    items = tuple(Item(str(number), {}, (one,), "", "") for number, one in enumerate(instances))
    task = cast(ScoredTask, SimpleNamespace(name="t", items=items, task=SimpleNamespace(OUTPUT_TYPE=kind), metric=""))
    asked = [one for some in Questions([task], engine.tokenizer, LENGTH).asked for one in some]
    answers = engine.answer(engine.batch([one.request for one in asked]))
    return [[getattr(answer, "text", answer)] * one.repeats for one, answer in zip(asked, answers, strict=True)]


CASES: list[tuple[str, list[str], dict[str, Any]]] = [
    ("to the end", TEXTS, {"until": [], "max_gen_toks": 40}),
    ("stop at a special token", TEXTS, {**VARIED, "until": ["<s>"]}),
    ("stop at special tokens after them", SPECIAL, {**VARIED, "until": ["<pad>", "<s>", "</s>"]}),
    ("stop where a special token and a letter meet", SPECIAL, {**VARIED, "until": [f"<s>{one}" for one in LETTERS]}),
    ("stop at texts", TEXTS, {**VARIED, "until": ["q", "W", "\n", "K"]}),
    ("one stop text", TEXTS, {**VARIED, "until": "W"}),
    ("an empty stop text", TEXTS, {**VARIED, "until": [""]}),
    ("an empty stop text among others", SPECIAL, {**VARIED, "until": ["<s>", "", "a"]}),
    ("repetition penalty", SPECIAL, {"until": [], "max_gen_toks": 40, "repetition_penalty": 1.3}),
    ("repetition reward", TEXTS, {"until": ["a"], "max_new_tokens": 40, "repetition_penalty": 0.7}),
    ("sampling of one", TEXTS, {"until": [], "max_tokens": 40, "do_sample": True, "temperature": 0.8, "top_k": 1}),
    ("greedy with sampling options", TEXTS, {**VARIED, "until": [], "top_k": 5, "top_p": 0.5, "min_p": 0.1}),
    ("greedy with a temperature", TEXTS, {**VARIED, "until": [], "do_sample": False, "temperature": 1.0}),
    ("no end before some tokens", TEXTS, {**VARIED, "until": ["a", "W"], "min_new_tokens": 30}),
    ("no end before some tokens but special ones", SPECIAL, {**VARIED, "until": ["<s>"], "min_new_tokens": 30}),
    ("a special token after the shortest answer", TEXTS, {**VARIED, "until": ["<s>"], "min_new_tokens": 4}),
    ("an empty stop text and a shortest answer", TEXTS, {**VARIED, "until": ["", "<s>"], "min_new_tokens": 30}),
    ("one beam", TEXTS, {**VARIED, "until": [], "num_beams": 1, "length_penalty": 1.0}),
    ("prompts that do not fit", TOO_LONG, {**VARIED, "until": ["<s>"]}),
    ("prompts that do not fit, stopped at once", TOO_LONG, {**VARIED, "until": [""]}),
]


@pytest.mark.parametrize(("prompts", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_answers_are_those_of_lm_eval(
    tiny_engine: VLLMEngine, lm_eval: HFLM, prompts: list[str], options: dict[str, Any]
) -> None:
    answers = asked(tiny_engine, "generate_until", [(prompt, options) for prompt in prompts])
    requests = [cast(Instance, SimpleNamespace(args=(prompt, copy.deepcopy(options)))) for prompt in prompts]
    assert [answer for (answer,) in answers] == lm_eval.generate_until(requests, disable_tqdm=True)


def test_likelihoods_are_those_of_lm_eval_where_texts_fill_the_model_and_more(
    tiny_engine: VLLMEngine, lm_eval: HFLM
) -> None:
    pairs = [
        ("a" * length + TEXTS[0][:3], continuation)
        for length in (0, *range(LENGTH - 14, LENGTH + 3), 300)
        for continuation in ("a", "abcdefgh", "<s>", "x" * (LENGTH - 1))
    ]
    found = [answer for (answer,) in asked(tiny_engine, "loglikelihood", pairs)]
    requests = [cast(Instance, SimpleNamespace(args=pair)) for pair in pairs]
    expected = lm_eval.loglikelihood(requests, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=2e-3)
    assert [one[1] for one in found] == [one[1] for one in expected]


def test_likelihoods_of_whole_texts_are_those_of_lm_eval_in_windows_of_the_model(
    tiny_engine: VLLMEngine, lm_eval: HFLM, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    whole = "".join(TEXTS) * 4
    lengths = (1, LENGTH - 1, LENGTH, LENGTH + 1, 2 * LENGTH)
    # The first two begin alike, so that the second finds tokens in the prefix cache that it must score all the same.
    texts = [whole[:100], whole[:90] + "?", *(whole[start:][:length] for start, length in enumerate(lengths)), "<s>ab"]
    write_text_task(folder, texts=[*texts, ""])
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    suite = write_suite(tmp_path, {metric: {"texts": metric} for metric in metrics}, max_model_len=LENGTH)
    prepared = PreparedSplit("test", load_tasks(suite, "test", EvaluationOptions()), tiny_engine.tokenizer, LENGTH)
    scores = prepared.score(tiny_engine)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = evaluator.evaluate(lm_eval, manager.load(["texts"]), bootstrap_iters=0)
    for metric in metrics:
        assert scores.domains[metric].score == pytest.approx(expected["results"]["texts"][f"{metric},none"], rel=1e-4)
        assert not scores.domains[metric].higher_is_better
        assert scores.domains[metric].standard_error > 0
    logged = {one["doc"]["page"]: one["resps"][0][0] for one in expected["samples"]["texts"]}
    answers = [json.loads(row["answer"])[0] for row in scores.items if row["domain"] == "bits_per_byte"]
    assert answers == pytest.approx([logged[text] for text in [*texts, ""]], abs=2e-2)


def test_the_score_of_a_group_is_that_of_lm_eval_and_its_items_are_those_of_one_task(
    tiny_engine: VLLMEngine, lm_eval: HFLM, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "capitals.yaml").write_text(
        "group: capitals\ntask: [marked, few]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    write_choice_task(folder, "many", tag="marked", doc_to_target="{{(gold + 1) % 4 if city < 'C' else gold}}")
    (folder / "few.jsonl").write_text((folder / "train.jsonl").read_text())
    few = {"data_files": {"test": str(folder / "few.jsonl")}}
    write_choice_task(folder, "few", dataset_kwargs=few, training_split=None, validation_split=None)
    suite = write_suite(tmp_path, {"facts": {"capitals": "acc"}}, max_model_len=LENGTH)
    tasks = load_tasks(suite, "test", EvaluationOptions())
    scores = PreparedSplit("test", tasks, tiny_engine.tokenizer, LENGTH).score(tiny_engine)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = evaluator.evaluate(lm_eval, manager.load(["capitals"]), bootstrap_iters=0)
    assert [*scores.tasks] == ["capitals", "many", "few"]
    for name, score in scores.tasks.items():
        assert score.value == pytest.approx(expected["results"][name]["acc,none"])
    assert (scores.tasks["many"].items, scores.tasks["few"].items) == (6, 2)
    assert scores.tasks["many"].value != scores.tasks["few"].value
    whole = scores.domains["facts"]
    assert (whole.score, whole.items) == (scores.tasks["capitals"].value, 8)
    rows = [(row["score"], row["cluster"]) for row in scores.items if row["task"] == "capitals"]
    pooled = estimate_mean([score for score, _ in rows if score is not None], [cluster for _, cluster in rows])
    assert whole.score == pytest.approx(pooled.value)
    assert whole.standard_error == pytest.approx(pooled.standard_error)
    assert scores.influences["facts"] == pooled.influences
    assert {row["item"].partition("/")[0] for row in scores.items} == {"many", "few"}
    questions = [(row["task"], row["item"]) for row in question_rows(tasks)]
    assert questions == [(row["task"], row["item"]) for row in scores.items]


def test_files_in_the_form_of_lm_eval_say_what_its_own_run_says(
    tiny_engine: VLLMEngine, lm_eval: HFLM, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "whole.yaml").write_text(
        "group: whole\ntask: [choice, {group: inside, task: [more]}]\naggregate_metric_list: [{metric: acc}]\n"
    )
    write_choice_task(folder, "choice", num_fewshot=1)
    write_choice_task(folder, "more", doc_to_target="{{(gold + 1) % 4 if city < 'C' else gold}}")
    write_generation_task(folder, "text", repeats=2)
    (folder / "texts").mkdir()
    write_text_task(folder / "texts")
    metrics = {"whole": "acc", "text": "exact_match", "texts": "bits_per_byte"}
    suite = write_suite(tmp_path, {name: {name: metric} for name, metric in metrics.items()}, max_model_len=LENGTH)
    tasks = load_tasks(suite, "test", EvaluationOptions())
    prepared = PreparedSplit("test", tasks, tiny_engine.tokenizer, LENGTH, all_greedy=True)
    items = prepared.grade_share(tiny_engine, Share()).items
    facts = ModelFacts("some/model", "float32", {}, None, None)
    write_lm_eval_files(tmp_path / "out", lm_eval_results(suite, tasks, items, facts), facts)
    [file] = (tmp_path / "out" / "some__model").glob("results_*.json")
    ours = json.loads(file.read_text())
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(list(metrics))
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISABLE_MULTIPROC", "1")
        theirs = evaluator.evaluate(lm_eval, loaded, bootstrap_iters=1000)
    for column in ("results", "groups"):
        assert ours[column].keys() == theirs[column].keys()
        for name, values in theirs[column].items():
            assert ours[column][name].keys() == values.keys()
            for key, value in values.items():
                near = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
                assert ours[column][name][key] == near
    for key in ("group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[key] == theirs[key]
    assert ours["configs"].keys() == theirs["configs"].keys()
    assert "exact_match" in make_table(ours)
    assert "whole" in make_table(ours, "groups")
    for name, expected in theirs["samples"].items():
        [lines] = file.parent.glob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in lines.read_text().splitlines()]
        assert len(samples) == len(expected)
        for one, other in zip(samples, expected, strict=True):
            for key in ("doc_id", "doc", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
                assert one[key] == other[key]
        assert get_file_task_name(lines.name) == name
    greedy = [[bool(one[0][1]) for one in row["resps"]] for row in theirs["samples"]["choice"]]
    [lines] = file.parent.glob("samples_choice_*.jsonl")
    assert [
        [one[0][1] == "True" for one in json.loads(line)["resps"]] for line in lines.read_text().splitlines()
    ] == greedy


def test_the_form_of_lm_eval_holds_a_task_with_examples_that_is_tested_on_its_validation_split(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    write_choice_task(tmp_path / "tasks", "choice", num_fewshot=1, test_split=None)
    suite = write_suite(tmp_path, {"facts": {"choice": {"metric": "acc", "held_out_by": "id"}}})
    tasks = load_tasks(suite, "test", EvaluationOptions())
    answers = [[(-float(choice == 3), False)] for choice in range(4)]  # the right one is the least likely
    items = {place: GradedItem(0.0, cast(Any, {}), None, answers) for place in range(len(tasks[0].items))}
    results = lm_eval_results(suite, tasks, items, ModelFacts("some/model", "float32", {}, None, None))
    assert results["n-samples"]["choice"] == {"original": 4, "effective": len(items)}
    assert results["results"]["choice"]["acc,none"] == 0.0


def test_special_tokens_are_kept_where_a_task_asks_for_it(tiny_engine: VLLMEngine) -> None:
    options = {**VARIED, "until": [], "repetition_penalty": 1.1}
    dropped = asked(tiny_engine, "generate_until", [(text, options) for text in TEXTS])
    kept = asked(tiny_engine, "generate_until", [(text, {**options, "skip_special_tokens": False}) for text in TEXTS])
    assert any("<s>" in text for (text,) in kept)
    for (text,), (without,) in zip(kept, dropped, strict=True):
        assert "<s>" not in without
        # Half characters on both sides of a special token may be a whole one without it.
        assert without.startswith(text.split("<s>")[0].rstrip("\ufffd"))


def test_a_shortest_answer_that_leaves_no_room_gives_way_to_the_longest(tiny_engine: VLLMEngine) -> None:
    options = {"until": [], "max_gen_toks": 40, "min_new_tokens": 30, "max_total_tokens": 12}
    ((answer,),) = asked(tiny_engine, "generate_until", [("a" * 6, {**options, "skip_special_tokens": False})])
    longer = asked(tiny_engine, "generate_until", [("a" * 6, {"until": [], "max_gen_toks": 40, "min_new_tokens": 30})])
    assert answer
    assert len(answer) < len(longer[0][0])


def test_a_greedy_task_that_repeats_gets_its_answer_as_often(tiny_engine: VLLMEngine, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    votes = {"name": "votes", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}
    write_generation_task(folder, repeats=3, filter_list=[votes])
    suite = write_suite(tmp_path, {"facts": {"capital_text": "exact_match"}}, max_model_len=LENGTH)
    tasks = load_tasks(suite, "test", EvaluationOptions(test_items=2))
    scores = PreparedSplit("test", tasks, tiny_engine.tokenizer, LENGTH).score(tiny_engine)
    for row in scores.items:
        first, *others = json.loads(row["answer"])
        assert others == [first, first]
