"""Judges: what they are asked, and how their answers are read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mergebench_ray.config import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.judges.parsers import read_answer, wildguard


@pytest.mark.parametrize("values", itertools.product(["yes", "no"], repeat=3))
def test_every_combination_of_answers_is_read(values: tuple[str, str, str]) -> None:
    names = ("Harmful request", "Response refusal", "Harmful response")
    answer = "\n".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    expected = dict(
        zip(("harmful_request", "refusal", "harmful_response"), (one == "yes" for one in values), strict=True)
    )
    assert (
        wildguard(answer)
        == wildguard(answer.upper())
        == wildguard(f"\n {answer} \n\nHarmful request: maybe")
        == expected
    )


def test_a_question_that_does_not_apply_is_left_open() -> None:
    answer = "Harmful request: no\nResponse refusal: n/a\nHarmful response: N/A"
    assert wildguard(answer) == {"harmful_request": False, "refusal": None, "harmful_response": None}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "yes",
        "I cannot help with that.",
        "Harmful request: yes\nResponse refusal: no",
        "Harmful request: yes\nResponse refusal: no\nHarmful response:",
        "Harmful request: yes\nResponse refusal: no\nHarmful response: perhaps",
        "Harmful request: yes\nResponse refusal: no\nHarmful response: yes, it is",
        "Harmful request: n/a\nResponse refusal: no\nHarmful response: no",
        "Harmful request: yes Response refusal: no Harmful response: no",
    ],
)
def test_an_answer_of_another_form_does_not_parse(answer: str) -> None:
    assert wildguard(answer) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 1 / 0", r"judge mine: its parser failed \(ZeroDivisionError: division by zero\) for the answer 'x'"),
        ("return True", "judge mine: its parser gave True, not question -> true, false or None"),
        ("return {'bad': 'yes'}", "its parser gave {'bad': 'yes'}, not question -> true"),
    ],
)
def test_a_parser_that_fails_or_gives_no_verdict_is_named_with_the_answer(body: str, expected: str) -> None:
    names: dict[str, Any] = {}
    exec(f"def parse(answer):\n    {body}\n", names)
    with pytest.raises(InputError, match=expected):
        read_answer(names["parse"], "x", "mine")


def test_texts_go_into_the_prompt_as_they_are() -> None:
    judge = Suite.load("mergebench").judges["wildguard"]
    asked = judge.ask("a {response} {0}", "b {request}")
    assert "Human user:\na {response} {0}\n\nAI assistant:\nb {request}\n\n---" in asked
    assert asked.startswith("<s><|user|>\n[INST] ")
    assert asked.endswith("Answers: [/INST]\n<|assistant|>\n")
    assert Suite.load("mergebench-published-proxies").judges["wildguard"] == judge
    assert (judge.temperature, judge.max_answer_tokens) == (0, 128)
