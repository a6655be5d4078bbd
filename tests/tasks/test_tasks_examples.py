from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask
from task_files import capital_items, write_choice_task, write_generation_task, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    return tasks


def load(folder: Path, split: Any, **settings: Any) -> ScoredTask:
    """The task capital_text or capital_choice of `folder`, with a suite's `settings` for it."""
    choice = (folder / "capital_choice.yaml").exists()
    name, metric = ("capital_choice", "acc") if choice else ("capital_text", "exact_match")
    content = {
        "name": "small",
        "tasks_folder": "tasks",
        "domains": {"facts": {"tasks": {name: {"metric": metric, **settings}}}},
        "max_model_len": 512,
        "held_out_share": 0.5,
    }
    file = folder.parent / "suite.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_tasks(Suite.load(str(file)), split, EvaluationOptions())[0]


def shown(task: ScoredTask) -> set[str]:
    """Countries that prompts ask for before they come to their own."""
    questions = [str(item.instances[0].args[0]).split("The capital of ")[1:-1] for item in task.items]
    return {question.split(" is")[0] for several in questions for question in several}


def countries(start: int, count: int) -> set[str]:
    return {item["country"] for item in capital_items(start, count)}


def asked(task: ScoredTask) -> list[Any]:
    return [item.instances[0].args for item in task.items]


def as_lm_eval_asks(task: ScoredTask) -> list[Any]:
    """The requests that lm-eval's own function builds of a task, with its own sampler."""
    plain: Any = task.task
    plain.sampler = plain.sampler._sampler
    plain.set_fewshot_seed(1234)
    plain.build_all_requests()
    return [instance.args for instance in plain.instances]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    "settings",
    [
        {"training_split": None},
        {"fewshot_split": "test"},
        {"fewshot_split": "validation"},
        {"fewshot_config": {"split": "validation"}},
        {"fewshot_config": {"sampler": "first_n", "split": "test"}, "fewshot_split": "train"},
    ],
    ids=str,
)
def test_examples_from_a_scored_split_are_refused(folder: Path, split: str, settings: dict[str, Any]) -> None:
    write_generation_task(folder, num_fewshot=1, **settings)
    with pytest.raises(InputError, match=r"capital_text: its few-shot examples come from the split .*num_fewshot: 0"):
        load(folder, split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_one_split_that_both_sides_divide_has_no_examples_left(folder: Path, split: str) -> None:
    write_generation_task(folder, num_fewshot=2, training_split=None, validation_split=None)
    with pytest.raises(InputError, match=r"come from the split test, whose items are scored; name another fewshot_spl"):
        load(folder, split, held_out_by="country")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scored_items_in_another_file_are_left_out_of_the_examples(folder: Path, split: str) -> None:
    mixed = capital_items(0, 2) + [{**item, "id": f"copy-{item['id']}"} for item in capital_items(2, 10)]
    random.Random(0).shuffle(mixed)
    write_lines(folder / "train.jsonl", mixed)
    write_generation_task(folder, num_fewshot=2)
    assert shown(load(folder, split)) == countries(0, 2)
    write_lines(folder / "train.jsonl", capital_items(1, 4))
    with pytest.raises(InputError, match=r"2 few-shot examples are asked for, but there are 1 that are not scored"):
        load(folder, split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_examples_that_a_task_file_lists_are_no_scored_items(folder: Path, split: str) -> None:
    listed = {"sampler": "first_n", "samples": capital_items(0, 2)}
    write_choice_task(folder, num_fewshot=2, training_split=None, fewshot_config=listed)
    assert shown(load(folder, split)) == countries(0, 2)
    for start in (2, 6):
        listed["samples"] = capital_items(0, 1) + capital_items(start, 1)
        write_choice_task(folder, num_fewshot=2, training_split=None, fewshot_config=listed)
        with pytest.raises(InputError, match="2 few-shot examples are asked for, but there are 1 that are not scored"):
            load(folder, split)


def test_documents_made_by_a_function_are_compared_as_they_are_asked(folder: Path) -> None:
    (folder / "documents.py").write_text(
        "def upper(rows):\n    return rows.map(lambda row: {**row, 'country': row['country'].upper()})\n"
    )
    write_lines(folder / "train.jsonl", capital_items(0, 1) + capital_items(6, 6))
    write_generation_task(folder, num_fewshot=1)
    file = folder / "capital_text.yaml"
    file.write_text(file.read_text() + "process_docs: !function documents.upper\n")
    assert shown(load(folder, "test")) == {"FRANCE"}


def test_other_examples_are_those_of_lm_eval(folder: Path) -> None:
    write_lines(folder / "train.jsonl", [{"country": f"Land {n}", "city": f"City {n}"} for n in range(30)])
    write_generation_task(folder, num_fewshot=3)
    assert asked(load(folder, "test")) == as_lm_eval_asks(load(folder, "test"))


def test_without_a_test_split_of_its_own_a_task_shows_the_examples_of_lm_eval(folder: Path) -> None:
    """lm-eval draws one example more from item to item there, so the later ones depend on it."""
    write_lines(folder / "train.jsonl", [{"country": f"Land {n}", "city": f"City {n}"} for n in range(30)])
    write_generation_task(folder, num_fewshot=3, test_split=None)
    assert asked(load(folder, "test", test_split="validation")) == as_lm_eval_asks(load(folder, "validation"))
