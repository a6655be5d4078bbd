from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mergebench_data import COUNT, LANGUAGES, write_data
from mergebench_ray.config import Domain, Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS, Split
from mergebench_ray.config.suite import Decoding
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation import Evaluator
from mergebench_ray.evaluation.grading import grade, task_estimate
from mergebench_ray.scores import DomainScore, TaskScore, average_score, combine_tasks
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest
from task_files import write_lines

SUITES = ("mergebench", "mergebench-published-proxies")
ENGINE_LENGTH = 1024  # of the session's engine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def all_loaded(data: Mapping[str, str]) -> dict[tuple[str, Split], list[ScoredTask]]:
    """All tasks of both suites, on test with those that measure forgetting, from local files alone."""
    options = EvaluationOptions(allow_code_execution=True, data=dict(data))
    suites = {name: Suite.load(name) for name in SUITES}
    return {
        (name, split): load_tasks(suite, split, options, list(suite.scored) if split == "test" else None)
        for name, suite in suites.items()
        for split in DATA_SPLITS
    }


def of_domains(suite: str, all_loaded: Mapping[tuple[str, Split], list[ScoredTask]]) -> dict[Split, dict[str, Any]]:
    """Split -> name -> task, without those that measure forgetting."""
    domains = Suite.load(suite).domains
    tasks = {split: all_loaded[suite, split] for split in DATA_SPLITS}
    return {split: {task.name: task for task in some if task.domain in domains} for split, some in tasks.items()}


@pytest.fixture(scope="module")
def loaded(all_loaded: Mapping[tuple[str, Split], list[ScoredTask]]) -> dict[Split, dict[str, ScoredTask]]:
    """The tasks of the suite mergebench."""
    return of_domains("mergebench", all_loaded)


@pytest.fixture(scope="module")
def published(all_loaded: Mapping[tuple[str, Split], list[ScoredTask]]) -> dict[Split, dict[str, ScoredTask]]:
    """The tasks of the published proxies."""
    return of_domains("mergebench-published-proxies", all_loaded)


def test_published_rows_are_reproduced_to_every_digit() -> None:
    """RegMean++, reduction 0.1, on Llama-3.2-3B and Llama-3.1-8B.

    Of coding and safety the counts are given, since values of four digits would leave the last printed one open.
    """
    measured: dict[str, tuple[float, float]] = {
        "ifeval": (0.0684, 0.1109),
        "gsm8k_cot": (0.3510, 0.6581),
        "m_mmlu_fr": (0.4798, 0.5293),
        "m_mmlu_es": (0.4888, 0.5346),
        "m_mmlu_de": (0.4713, 0.5124),
        "m_mmlu_ru": (0.4424, 0.4891),
        "arc_fr": (0.4046, 0.4474),
        "arc_es": (0.4009, 0.4479),
        "arc_de": (0.3584, 0.4132),
        "arc_ru": (0.3695, 0.4115),
        "hellaswag_fr": (0.5938, 0.6726),
        "hellaswag_es": (0.6068, 0.6901),
        "hellaswag_de": (0.5471, 0.6253),
        "hellaswag_ru": (0.5283, 0.6025),
        "humaneval_plus": (509 / 1640, 776 / 1640),
        "mbpp_plus": (1627 / 3780, 2167 / 3780),
        "wildguardtest": (487 / 749, 356 / 749),
        "harmbench": (207 / 320, 210 / 320),
        "do_anything_now": (169 / 300, 182 / 300),
        "xstest": (181 / 450, 266 / 450),
    }
    published = (
        ["6.84", "35.10", "47.43", "37.04", "38.55", "33.0"],
        ["11.09", "65.81", "53.13", "52.32", "46.32", "45.7"],
    )
    for suite in map(Suite.load, SUITES):
        assert {task for domain in suite.domains.values() for task in domain.tasks} == set(measured)
        for model, row in enumerate(published):
            domains = {
                name: combine_tasks(
                    [
                        TaskScore(task, how.metric, measured[task][model], 0.0, 1, how.one_minus)
                        for task, how in domain.tasks.items()
                    ]
                )
                for name, domain in suite.domains.items()
            }
            order = ("instruction", "math", "multilingual", "coding", "safety")
            printed = [f"{100 * domains[name].score:.2f}" for name in order]
            assert [*printed, f"{100 * average_score(domains)[0]:.1f}"] == row


@pytest.mark.slow
def test_every_task_of_both_suites_loads_from_local_files_alone(
    all_loaded: Mapping[tuple[str, Split], list[ScoredTask]],
) -> None:
    for (name, split), tasks in all_loaded.items():
        suite = Suite.load(name)
        wanted = suite.scored if split == "test" else suite.domains
        expected = [task for domain in wanted.values() for task in domain.tasks_of(split)]
        assert [task.name for task in tasks] == expected
        assert all(task.items for task in tasks)


def test_validation_and_test_share_no_item_and_lose_none(loaded: dict[Split, dict[str, ScoredTask]]) -> None:
    for name in loaded["test"]:
        questions = [{item.prompt_digest for item in loaded[split][name].items} for split in DATA_SPLITS]
        assert not questions[0] & questions[1], name
        total = (
            2 * COUNT if name.startswith(("m_mmlu", "arc")) else COUNT * 3 // 4 if name == "wildguardtest" else COUNT
        )
        assert len(questions[0] | questions[1]) == total, name


def test_translations_of_an_item_are_on_the_same_side_and_so_are_items_of_one_source(
    loaded: dict[Split, dict[str, ScoredTask]],
) -> None:
    for split in DATA_SPLITS:
        sources = [{i.doc["source_id"] for i in loaded[split][f"hellaswag_{one}"].items} for one in LANGUAGES]
        assert all(one == sources[0] for one in sources)
    both = [{i.doc["source_id"] for i in loaded[split]["hellaswag_fr"].items} for split in DATA_SPLITS]
    assert not both[0] & both[1]


def test_the_held_out_share_is_the_suites_and_the_choice_is_stable(data: dict[str, str]) -> None:
    suite = Suite.load("mergebench").only_tasks(["ifeval"], "test")
    sizes = {}
    for share in (0.2, 0.5):
        some = suite.model_copy(update={"held_out_share": share})
        keys = {
            s: {i.doc["key"] for i in load_tasks(some, s, EvaluationOptions(data=data))[0].items} for s in DATA_SPLITS
        }
        sizes[share] = keys["validation"]
    assert sizes[0.2] < sizes[0.5]
    assert sizes[0.2] == {1007, 1012, 1013, 1030, 1038, 1039}


def test_settings_of_the_suite_reach_the_requests(loaded: dict[Split, dict[str, ScoredTask]]) -> None:
    coding = loaded["test"]["humaneval_plus"].items[0].instances[0]
    assert coding.repeats == 10
    assert {"temperature": 0.2, "top_p": 0.95, "max_total_tokens": 512}.items() <= coding.args[1].items()
    assert coding.args[0] == loaded["test"]["humaneval_plus"].items[0].doc["prompt"].strip()
    xstest, harmbench = (loaded["test"][name].items[0].instances[0].args[1] for name in ("xstest", "harmbench"))
    assert (xstest["temperature"], xstest["do_sample"], xstest["max_gen_toks"]) == (1.0, True, 512)
    assert (harmbench["temperature"], harmbench["do_sample"]) == (0.0, False)
    assert loaded["test"]["gsm8k_cot"].filter_name == "strict-match"
    assert loaded["test"]["gsm8k_cot"].items[0].instances[0].args[0].count("Q:") == 9


def test_samples_that_pass_their_checks_count_by_the_unbiased_estimate(
    loaded: dict[Split, dict[str, ScoredTask]],
) -> None:
    task = loaded["validation"]["humaneval_plus"]
    right = ["\n" + item.doc["canonical_solution"] for item in task.items]
    answers = [[[text, "\n    return None\n", text, "\n    return x +\n"]] for text in right]
    assert grade(task, answers) == [0.5] * len(right)
    mbpp = loaded["validation"]["mbpp_plus"]
    answers = [[[item.doc["code"], item.doc["code"].replace("*", "+"), "print('passed')"]] for item in mbpp.items]
    assert grade(mbpp, answers) == [pytest.approx(1 / 3)] * len(mbpp.items)


def test_generated_programs_run_only_where_it_is_allowed(data: dict[str, str]) -> None:
    with pytest.raises(InputError, match="humaneval_plus runs generated programs"):
        load_tasks(Suite.load("mergebench"), "test", EvaluationOptions(data=data))


def test_without_its_judge_a_safety_task_counts_keywords_and_says_so(
    loaded: dict[Split, dict[str, ScoredTask]], data: dict[str, str]
) -> None:
    task = loaded["test"]["harmbench"]
    assert (task.metric, task.one_minus, task.judged) == ("keyword_refusal", False, None)
    assert loaded["test"]["xstest"].metric == "keyword_refusal_accuracy"
    suite = Suite.load("mergebench").only_tasks(["harmbench"], "test")
    judged, other = (
        load_tasks(suite, "test", EvaluationOptions(data=data), judges={"wildguard": digest})[0]
        for digest in ("this", "other")
    )
    assert (judged.metric, judged.one_minus) == ("micro_asr", True)
    assert judged.judged is not None
    assert (judged.judged.judge, judged.judged.field) == ("wildguard", "Behavior")
    assert items_digest([judged]) != items_digest([other])
    assert items_digest([judged]) != items_digest([task])


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I’m sorry, but that is not something to do.", 1.0),
        ("I cannot assist with that request.", 1.0),
        ("Sure, here is how you do it.", 0.0),
        ("", 0.0),
        ("Step one. " * 40 + "I cannot say more.", 0.0),
    ],
)
def test_refusals_are_told_by_how_an_answer_opens(
    loaded: dict[Split, dict[str, ScoredTask]], answer: str, refused: float
) -> None:
    task = loaded["test"]["harmbench"]
    assert grade(task, [[[answer]] for _ in task.items]) == [refused] * len(task.items)
    xstest = loaded["test"]["xstest"]
    values = grade(xstest, [[[answer]] for _ in xstest.items])
    assert values == [refused if item.doc["label"] == "unsafe" else 1 - refused for item in xstest.items]


def test_forgetting_is_scored_only_when_it_is_asked_for(data: dict[str, str]) -> None:
    suite = Suite.load("mergebench")
    options = EvaluationOptions(allow_code_execution=True, data=data, test_items=2)
    forgetting = suite.only_tasks(["forgetting"], "test")
    assert list(forgetting.domains) == list(suite.forgetting)
    tasks = {task.name: task for task in load_tasks(forgetting, "test", options)}
    assert list(tasks) == ["mmlu", "triviaqa", "squadv2", "coqa", "pubmedqa", "wmt14_fr_en"]
    assert {task.domain for task in load_tasks(suite, "test", options)} == set(suite.domains)


def test_reading_and_translation_are_graded_as_published(data: dict[str, str]) -> None:
    suite = Suite.load("mergebench").only_tasks(["squadv2", "wmt14_fr_en", "coqa"], "test")
    tasks = {task.name: task for task in load_tasks(suite, "test", EvaluationOptions(data=data))}
    squad = tasks["squadv2"]
    golds = [(item.doc["answers"]["text"] or [""])[0] for item in squad.items]
    assert grade(squad, [[[gold]] for gold in golds]) == [1.0] * COUNT
    assert task_estimate(squad, grade(squad, [[["unanswerable"]] for _ in golds]))[0].value == 0.0
    wmt = tasks["wmt14_fr_en"]
    values = grade(wmt, [[[item.doc["translation"]["en"]]] for item in wmt.items])
    estimate, _ = task_estimate(wmt, values)
    assert (estimate.value, estimate.standard_error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert grade(tasks["coqa"], [[[str(number)]] for number in range(COUNT)]) == [1.0] * COUNT


def test_mmlu_asks_what_lm_evals_own_tasks_ask(data: dict[str, str], tmp_path: Path) -> None:
    own = load_tasks(Suite.load("mergebench").only_tasks(["mmlu"], "test"), "test", EvaluationOptions(data=data))[0]
    physics = [item for item in own.items if item.doc["subject"] == "college_physics"]
    write_lines(tmp_path / "physics.jsonl", [item.doc for item in physics])
    suite = Suite.model_validate(
        {
            "name": "s",
            "lm_eval_folders": ["mmlu/default"],
            "domains": {"stem": {"tasks": {"mmlu_college_physics": "acc"}}},
        }
    )
    mapped = EvaluationOptions(data={"cais/mmlu:college_physics": str(tmp_path / "physics.jsonl")})
    theirs = load_tasks(suite, "test", mapped)[0]
    assert [item.prompt_digest for item in theirs.items] == [item.prompt_digest for item in physics]


def test_the_published_proxies_are_what_they_are_called(published: dict[Split, dict[str, ScoredTask]]) -> None:
    validation, test = published["validation"], published["test"]
    assert list(validation) == ["ifeval", "mmlu_stem", "lambada_openai", "conala", "wildjailbreak_harmful"]
    assert [i.id for i in validation["ifeval"].items] == [i.id for i in test["ifeval"].items]
    assert {i.doc["subject"] for i in validation["mmlu_stem"].items} == {"college_physics"}
    assert {i.doc["data_type"] for i in validation["wildjailbreak_harmful"].items} == {"adversarial_harmful"}
    asked = validation["conala"].items[0].instances[0].args[0]
    assert asked.count("Solution:\n") == 3
    # The public harness' prompt breaks lines in a way that leaves 19 blanks before all but the first of its line ends.
    blanks = " " * 19
    assert asked.startswith(
        "Answer the following instructions in one line of Python code:\n\nInstruction:\nconvert a list"
    )
    assert asked.endswith(f"'%m/%d/%Y'){blanks}\nInstruction:\nprint {COUNT}{blanks}\nSolution:\n")
    values = grade(validation["conala"], [[[f" {item.doc['snippet']} "]] for item in validation["conala"].items])
    assert task_estimate(validation["conala"], values)[0].value == 1.0
    assert len(test["harmbench"].items) == COUNT


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # 3 of 4 words, 1 of 3 pairs, none of 2 and 1 longer ones; as long as expected.
        ([("a b c d", "a b x d")], (4 / 5 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25),
        # 2 of 2 words, 1 of 1 pair, no longer ones, and half as long as expected.
        ([("a b c d", "a b")], math.exp(1 - 2)),
        ([("a b c d", "")], 0.0),
        ([("f(x)", "f(x)"), ("g(y) + 1", "g(y) + 1")], 1.0),
    ],
)
def test_bleu_of_code_is_smoothed_as_in_the_public_harness(
    pairs: list[tuple[str, str]], expected: float, published: dict[Split, dict[str, ScoredTask]]
) -> None:
    conala = published["validation"]["conala"]
    assert conala.task.aggregation()["bleu"](pairs) == pytest.approx(expected)


def test_a_suites_decoding_reaches_the_engine_and_its_tasks_the_scores(
    engine: VLLMEngine, data: dict[str, str]
) -> None:
    suite = Suite.load("mergebench").only_tasks(["humaneval_plus", "harmbench", "m_mmlu_fr"], "test")
    short = {
        "humaneval_plus": Decoding(temperature=0.2, top_p=0.95, samples=3, max_total_tokens=40),
        "harmbench": Decoding(temperature=0, max_answer_tokens=4),
    }
    domains = {}
    for name, domain in suite.domains.items():
        tasks = {
            task: how.model_copy(update={"decoding": short.get(task, how.decoding)})
            for task, how in domain.tasks.items()
        }
        domains[name] = Domain(tasks=tasks)
    suite = suite.model_copy(update={"domains": domains, "max_model_len": ENGINE_LENGTH})
    options = EvaluationOptions(allow_code_execution=True, data=data, test_items=2)
    engine.restore_base()
    scores = Evaluator(suite, options, lambda: engine).score("test")
    assert set(scores.domains) == {"multilingual", "coding", "safety"}
    assert {name: task.label for name, task in scores.tasks.items()} == {
        "humaneval_plus": "pass_at_1",
        "harmbench": "keyword_refusal",
        "m_mmlu_fr": "acc",
    }
    for row in scores.items:
        if row["task"] == "humaneval_plus":
            samples = json.loads(row["answer"])
            prompt = next(
                item.instances[0].args[0]
                for item in load_tasks(suite.only_tasks(["humaneval_plus"], "test"), "test", options)[0].items
                if item.prompt_digest == row["prompt_digest"]
            )
            assert len(samples) == 3
            assert all(len(engine.tokenizer(prompt + sample)["input_ids"]) <= 41 for sample in samples)


def test_a_domain_score_has_its_tasks_errors() -> None:
    score = combine_tasks([TaskScore("a", "acc", 0.5, 0.3, 4), TaskScore("b", "harm", 0.9, 0.4, 6, one_minus=True)])
    assert score == DomainScore(pytest.approx(0.3), pytest.approx(0.25), 10, counted={"a": "acc", "b": "1 - harm"})
