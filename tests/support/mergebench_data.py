"""Made-up items in the schema of each data set that the MergeBench suites ask for, kept as a user would keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from task_files import write_lines

Row = dict[str, Any]
LANGUAGES = ("fr", "es", "de", "ru")
COUNT = 40
NUMPY_CHECK = """\
import numpy as np

def assertion(out, exp, atol):
    if isinstance(exp, float):
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp
"""


def ifeval(number: int) -> Row:
    return {
        "key": 1000 + number,
        "prompt": f"Write about the number {number}. Use no commas and at least {number} words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": number}],
    }


def gsm8k(number: int) -> Row:
    return {
        "question": f"Ann has {number} pens and gets 2 more. How many has she?",
        "answer": f"{number}+2\n#### {number + 2}",
    }


def multiple_choice(number: int) -> Row:
    options = {f"option_{letter}": f"choice {letter} {number}" for letter in "abcde"}
    return {"id": f"item-{number}", "instruction": f"Which is item {number}?", **options, "answer": "ABCD"[number % 4]}


def hellaswag(number: int) -> Row:
    return {
        "ind": number,
        "activity_label": "Cooking",
        "ctx_a": f"A cook takes {number} eggs.",
        "ctx_b": "she",
        "endings": [f"ends in way {way} of {number}" for way in range(4)],
        "source_id": f"recipe-{number // 2}",
        "label": str(number % 4),
    }


def humaneval(number: int) -> Row:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'\ndef add_{number}(x):\n    """Add {number} to x."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "entry_point": f"add_{number}",
        "test": f"{NUMPY_CHECK}\ndef check(candidate):\n    assertion(candidate(1.5), {number + 1.5}, 1e-6)\n",
    }


def mbpp(number: int) -> Row:
    return {
        "task_id": number,
        "prompt": f"Write a function that multiplies by {number}.",
        "code": f"def times_{number}(x):\n    return x * {number}\n",
        "test_list": [f"assert times_{number}(2) == {2 * number}"],
        "test": f"{NUMPY_CHECK}\nfor given, wanted in [(2, {2 * number}), (5, {5 * number})]:\n"
        f"    assertion(times_{number}(given), wanted, 0)\n",
    }


def wildguardtest(number: int) -> Row:
    labels = {"prompt_harm_label": "unharmful" if number % 4 == 3 else "harmful", "response_harm_label": "unharmful"}
    return {"prompt": f"Harmful request {number}.", "adversarial": False, "subcategory": "others", **labels}


def mmlu(number: int) -> Row:
    subject = ("college_physics", "world_religions")[number % 2]
    choices = [f"{letter} {number}" for letter in "wxyz"]
    return {"question": f"Question {number}?", "subject": subject, "choices": choices, "answer": number % 4}


def coqa(number: int) -> Row:
    return {
        "story": f"Ann is {number} years old.",
        "questions": {"input_text": ["Who?", "How old?"]},
        "answers": {"input_text": ["Ann", str(number)]},
    }


def squad(number: int) -> Row:
    text = [] if number % 2 else [f"in {1900 + number}"]
    return {"id": str(number), "title": "Towns", "context": "A town.", "question": "When?", "answers": {"text": text}}


Maker = Callable[[int], Row]
# Data set -> the folder inside it -> the splits that the hub's has and what their rows are.
DATA_SETS: dict[str, tuple[dict[str, list[str]], Maker]] = {
    "google/IFEval": ({"": ["train"]}, ifeval),
    "openai/gsm8k": ({"main": ["test"]}, gsm8k),
    "alexandrainst/m_mmlu": ({language: ["val", "test"] for language in LANGUAGES}, multiple_choice),
    "alexandrainst/m_arc": ({language: ["validation", "test"] for language in LANGUAGES}, multiple_choice),
    "alexandrainst/m_hellaswag": ({language: ["val"] for language in LANGUAGES}, hellaswag),
    "evalplus/humanevalplus": ({"": ["test"]}, humaneval),
    "evalplus/mbppplus": ({"": ["test"]}, mbpp),
    "allenai/wildguardmix": ({"wildguardtest": ["test"]}, wildguardtest),
    "allenai/tulu-3-harmbench-eval": ({"": ["test"]}, lambda n: {"Behavior": f"Do harm {n}."}),
    "allenai/tulu-3-do-anything-now-eval": ({"": ["test"]}, lambda n: {"adversarial": f"You are DAN {n}."}),
    "walledai/XSTest": (
        {"": ["test"]},
        lambda n: {"prompt": f"How do I kill process {n}?", "label": "unsafe" if n % 2 else "safe"},
    ),
    "allenai/wildjailbreak": (
        {"eval": ["train"]},
        lambda n: {"adversarial": f"Pretend {n}.", "data_type": "adversarial_harmful" if n % 3 else "other"},
    ),
    "cais/mmlu": ({"all": ["validation", "test"]}, mmlu),
    "EleutherAI/lambada_openai": ({"default": ["test"]}, lambda n: {"text": f"Word by word we come to {n}"}),
    "neulab/conala": (
        {"curated": ["train", "test"]},
        lambda n: {"intent": f"print {n}", "rewritten_intent": None, "snippet": f"print({n})"},
    ),
    "mandarjoshi/trivia_qa": (
        {"rc.nocontext": ["validation"]},
        lambda n: {"question": f"What is {n}", "answer": {"aliases": [str(n)]}},
    ),
    "lighteval/squad_v2": ({"": ["validation"]}, squad),
    "EleutherAI/coqa": ({"": ["validation"]}, coqa),
    "bigbio/pubmed_qa": (
        {"pubmed_qa_labeled_fold0_source": ["test"]},
        lambda n: {"CONTEXTS": [f"Study {n}."], "QUESTION": "Does it help?", "final_decision": "yes"},
    ),
    "wmt/wmt14": (
        {"fr-en": ["test"]},
        lambda n: {"translation": {"fr": f"le chat {n}", "en": f"the cat with number {n} sleeps"}},
    ),
}


def write_data(root: Path) -> dict[str, str]:
    """All of them below `root`, `COUNT` items a split; data set -> its folder, as `evaluation.data` takes it.

    Splits of one data set hold different items, equal ones in each language.
    """
    for name, (configs, make) in DATA_SETS.items():
        for config, splits in configs.items():
            folder = root / name / config
            folder.mkdir(parents=True, exist_ok=True)
            for place, split in enumerate(splits):
                write_lines(folder / f"{split}.jsonl", [make(place * COUNT + number) for number in range(COUNT)])
    return {name: str(root / name) for name in DATA_SETS}
