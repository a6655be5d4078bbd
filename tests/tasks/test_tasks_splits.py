"""Tasks with one split alone: lm-eval's items on test, and none of them in a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.ready_sweep import load_checked_tasks
from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import notes_of
from mergebench_ray.tasks.splits import check_splits_apart
from task_files import capital_items, write_choice_task, write_lines, write_suite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task with a training and a validation split, and one with all three."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_choice_task(tasks, "two", test_split=None)
    write_choice_task(tasks, "three")
    return tasks


def suite_of(folder: Path, tasks: dict[str, Any]) -> Suite:
    return write_suite(folder.parent, {"facts": tasks})


def ids(suite: Suite, split: Any) -> list[str]:
    [task] = load_tasks(suite, split, EvaluationOptions())
    return [item.id for item in task.items]


def test_a_task_without_a_test_split_is_asked_the_items_of_lm_eval_and_that_is_said(folder: Path) -> None:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = [document["id"] for document in manager.load("two")["tasks"]["two"].eval_docs]
    assert ids(suite_of(folder, {"two": "acc"}), "test") == theirs
    tasks = load_tasks(suite_of(folder, {"three": "acc", "two": "acc"}), "test", EvaluationOptions())
    assert notes_of(tasks) == ["no test split, so that test is their validation split, as in lm-eval: 1 task, two"]
    assert notes_of(load_tasks(suite_of(folder, {"two": "acc"}), "validation", EvaluationOptions())) == []


@pytest.mark.parametrize(
    "settings", [{"two": "acc"}, {"three": {"metric": "acc", "test_split": "validation"}}], ids=["two", "three"]
)
def test_a_search_that_would_see_the_items_of_its_test_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    message = r"task (two|three): search and test would have the same items, .*held_out_by: FIELD .*\(it has train\)"
    with pytest.raises(InputError, match=message):
        check_splits_apart(suite_of(folder, settings), ["facts"])


def test_search_and_test_divide_the_only_split_by_a_field(folder: Path) -> None:
    write_lines(folder / "validation.jsonl", capital_items(0, 12))
    suite = suite_of(folder, {"two": {"metric": "acc", "held_out_by": "id"}})
    suite = suite.model_copy(update={"held_out_share": 0.5})
    check_splits_apart(suite, ["facts"])
    seen, tested = ids(suite, "validation"), ids(suite, "test")
    assert seen
    assert tested
    assert sorted(seen + tested) == sorted(f"capital-{number}" for number in range(12))
    assert notes_of(load_tasks(suite, "test", EvaluationOptions())) == [
        "no test split, so that search and test divide their validation split: 1 task, two"
    ]


def test_a_search_may_see_the_training_split_where_test_is_the_validation_split(folder: Path) -> None:
    suite = suite_of(folder, {"two": {"metric": "acc", "validation_split": "train"}})
    check_splits_apart(suite, ["facts"])
    assert ids(suite, "validation") == ["capital-0", "capital-1"]
    assert ids(suite, "test") == [f"capital-{number}" for number in range(2, 6)]


def test_a_task_of_validation_alone_may_stand_in_for_others(folder: Path) -> None:
    suite = suite_of(folder, {"three": "acc"})
    domain = suite.domains["facts"].model_copy(
        update={"validation_tasks": suite_of(folder, {"two": "acc"}).domains["facts"].tasks}
    )
    check_splits_apart(suite.model_copy(update={"domains": {"facts": domain}}), ["facts"])


def test_a_search_in_one_domain_would_see_the_items_that_another_is_tested_on(folder: Path) -> None:
    two, three = (suite_of(folder, {name: "acc"}).domains["facts"] for name in ("two", "three"))
    other = three.model_copy(update={"validation_tasks": two.tasks})
    suite = suite_of(folder, {"three": "acc"}).model_copy(
        update={"domains": {"searched": other, "tested": two.model_copy(update={"validation_tasks": three.tasks})}}
    )
    check_splits_apart(suite, ["searched"])
    check_splits_apart(suite, ["tested"])
    with pytest.raises(InputError, match="task two: search and test would have the same items"):
        check_splits_apart(suite, ["searched", "tested"])


def test_a_class_without_test_items_is_searched_only_where_both_divide_its_validation_split(
    tmp_path: Path, base_folder: Path
) -> None:
    row = {"context": "C.", "question": "Q?", "answers": {"text": ["a"], "answer_start": [0]}}
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.jsonl", [{"id": str(n), "title": f"T{n}", **row} for n in range(12)])
    options = EvaluationOptions(data={"lighteval/squad_v2": str(tmp_path)})

    def asked(**settings: Any) -> dict[Any, set[str]]:
        domains = {"facts": {"tasks": {"squadv2": {"metric": "f1", **settings}}}}
        suite = Suite.model_validate(
            {"name": "s", "lm_eval_folders": ["squadv2"], "domains": domains, "held_out_share": 0.5}
        )
        tasks = load_checked_tasks(suite, options, ["validation", "test"], {}, resolve(str(base_folder)))
        return {split: {item.id for task in some for item in task.items} for split, some in tasks.items()}

    with pytest.raises(InputError, match=r"task squadv2: search and test would have the same items, .*held_out_by"):
        asked()
    apart = asked(held_out_by="title")
    assert apart["validation"] | apart["test"] == {str(n) for n in range(12)}
    assert not apart["validation"] & apart["test"]
