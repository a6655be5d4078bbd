"""The built-in suite: its data is varied, kept apart between splits, and scored as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.evaluation.grading import grade
from mergebench_ray.suites.smollm2_mini.generate import GENERATORS, coding, instruction, math, multilingual, safety
from mergebench_ray.suites.smollm2_mini.generate.common import Item, share, split_of
from mergebench_ray.suites.smollm2_mini.generate.safety_requests import HARMFUL, HARMLESS
from mergebench_ray.tasks.loading import load_tasks

SPLITS = ("train", "validation", "test")
ITEMS = {domain: {split: module.items(split) for split in SPLITS} for domain, module in GENERATORS.items()}
domains = pytest.mark.parametrize("domain", GENERATORS)


def scores(domain: str, items: list[Item], answers: list[str]) -> list[float]:
    if domain == "coding":
        return coding.score_batch(items, answers)
    return [GENERATORS[domain].score(item, answer) for item, answer in zip(items, answers, strict=True)]


@domains
def test_splits_have_their_size_and_share_no_prompt(domain: str) -> None:
    assert len(ITEMS[domain]["validation"]) == 64
    assert len(ITEMS[domain]["test"]) == 128
    prompts = [item["prompt"] for split in SPLITS for item in ITEMS[domain][split]]
    assert len(set(prompts)) == len(prompts)
    names = [item["id"] for split in SPLITS for item in ITEMS[domain][split]]
    assert len(set(names)) == len(names)


@domains
def test_every_domain_has_at_least_twelve_kinds_in_every_split(domain: str) -> None:
    for split in SPLITS:
        kinds = Counter(item["kind"] for item in ITEMS[domain][split])
        assert len(kinds) >= 12
        assert max(kinds.values()) <= 0.12 * len(ITEMS[domain][split])


@pytest.mark.slow
@domains
def test_gold_answers_score_and_wrong_ones_do_not(domain: str) -> None:
    for split in ("validation", "test"):
        items = ITEMS[domain][split]
        assert set(scores(domain, items, [item["gold"] for item in items])) == {1.0}
        assert set(scores(domain, items, [""] * len(items))) == {0.0}
        assert domain == "safety" or set(scores(domain, items, [" 0"] * len(items))) == {0.0}


def test_generation_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib, json\nfrom mergebench_ray.suites.smollm2_mini.generate import GENERATORS\n"
        "print(hashlib.sha256(json.dumps([m.items('test') for m in GENERATORS.values()]).encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1]


def test_content_belongs_to_one_split() -> None:
    pool = tuple(range(100))
    shares = [set(share(pool, split)) for split in SPLITS]
    assert set().union(*shares) == set(pool)
    assert sum(map(len, shares)) == len(pool)
    assert {split_of(f"content {number}") for number in range(100)} == set(SPLITS)


def bodies(split: str) -> set[str]:
    """The functions of a split, whatever they and their parameters are called."""
    found = set()
    for item in ITEMS["coding"][split]:
        body = item["gold"]
        parameters = item["prompt"].partition("(")[2].partition(")")[0].split(", ")
        for number, name in enumerate(parameters):
            body = re.sub(rf"\b{name}\b", f"<{number}>", body)
        found.add(body)
    return found


def requests(split: str) -> set[str]:
    asked = [*(request for requests, _ in HARMFUL.values() for request in requests)]
    asked += [request for answered in HARMLESS.values() for request, _ in answered]
    return {request for request in asked for item in ITEMS["safety"][split] if request in item["prompt"]}


def translations(split: str) -> set[str]:
    return {item["check"] for item in ITEMS["multilingual"][split] if "number" not in item["kind"]}


@pytest.mark.parametrize("content", [bodies, requests, translations])
@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_functions_requests_and_sentences_held_out_were_never_trained_on(
    content: Callable[[str], set[str]], held_out: str
) -> None:
    assert content(held_out)
    assert not content(held_out) & content("train")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" 3 + 4 = 7 #### 7", 1.0),
        (" The answer is 7.", 1.0),
        (" 7 apples\nQuestion: what about 9?", 1.0),
        (" #### 8", 0.0),
        (" seven", 0.0),
        (" 7 and then 9", 0.0),
    ],
)
def test_a_math_answer_is_the_marked_or_else_the_last_number(answer: str, expected: float) -> None:
    assert math.score({"check": "7"}, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(" la maison blanche", 1.0), ("La maison blanche.\nmore", 1.0), (" la blanche maison", 0.0), ("", 0.0)],
)
def test_a_translation_must_be_exact_up_to_case_and_punctuation(answer: str, expected: float) -> None:
    assert multilingual.score({"check": "la maison blanche"}, answer) == expected


@pytest.mark.parametrize(
    ("kind", "check", "good", "bad"),
    [
        ("count", '[["word_count", [3]]]', "I like cats.", "I like cats much."),
        ("lower", '[["lower", []], ["one_line", []]]', "i see.", "I see."),
        ("repeat", '[["repeated", ["a", 2]]]', "a a", "a a a"),
        ("items", '[["items", [2]]]', "red, blue", "red, red"),
        ("numbered", '[["numbered", [2]]]', "1. a\n2. b", "1. a\n3. b"),
        ("json", '[["json_keys", ["a"]]]', '{"a": 1}', '{"a": 1, "b": 2}'),
        ("wrapped", '[["wrapped", ["<<", ">>"]]]', "<<A title>>", "A <<title>>"),
        ("letter", '[["without", ["s"]]]', "I like one cat", "I like cats"),
        ("ends", '[["ends", ["cat"]]]', "I saw a cat.", "A cat saw me."),
        ("choice", '[["one_of", ["a", "b"]]]', "a", "c"),
    ],
)
def test_constraints_are_checked_by_code(kind: str, check: str, good: str, bad: str) -> None:
    assert instruction.score({"check": check}, f" {good}") == 1.0
    assert instruction.score({"check": check}, f" {bad}") == 0.0


def test_both_halves_of_safety_count() -> None:
    for item in ITEMS["safety"]["test"]:
        refused, answered = " I'm sorry, but I can't help with that.", " First take a bowl and then go on."
        assert safety.score(item, refused) + safety.score(item, answered) == 1.0
    assert Counter(item["check"] for item in ITEMS["safety"]["test"]).keys() == {"refuse", "answer"}


def test_code_after_the_function_does_not_run() -> None:
    item = ITEMS["coding"]["test"][0]
    assert coding.score(item, f"{item['gold']}\n\nraise SystemExit") == 1.0
    assert coding.score(item, "raise SystemExit\n") == 0.0


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_suite_loads_as_lm_eval_tasks_and_gold_answers_grade_one(split: str) -> None:
    suite = Suite.load("smollm2-mini")
    # Some of them: that every gold answer scores is asked of the generators themselves.
    options = EvaluationOptions(allow_code_execution=True, validation_items=16, test_items=16)
    tasks = load_tasks(suite, split, options)
    assert {task.domain for task in tasks} == set(GENERATORS)
    for task in tasks:
        golds = [[[item.doc["gold"]]] for item in task.items]
        assert set(grade(task, golds)) == {1.0}
        first = task.items[0].doc
        assert task.task.process_results(first, [first["gold"]]) == {"score": 1.0}


def test_generators_share_one_interface() -> None:
    for module in GENERATORS.values():
        assert isinstance(module, ModuleType)
        item = module.items("validation", 1)[0]
        assert set(item) == {"id", "kind", "prompt", "gold", "check"}
        assert item["gold"].startswith(" ")
        assert not item["prompt"].endswith(" ")
