"""Tasks with one split alone: lm-eval's items on test, and none of them in a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

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
