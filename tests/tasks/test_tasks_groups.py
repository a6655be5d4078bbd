"""lm-eval's groups and tags in a suite: the tasks that they stand for, and how these count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.groups import PlannedTask, planned_tasks
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import notes_of
from task_files import write_choice_task, write_generation_task, write_suite

BY_SIZE = {"metric": "acc", "weight_by_size": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tasks a to d of one kind, c and d with a tag, and one that is generated."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, more in {"a": {}, "b": {}, "c": {"tag": "marked"}, "d": {"tag": ["marked", "other"]}}.items():
        write_choice_task(tasks, name, **more)
    write_generation_task(tasks, "text")
    return tasks


def write_group(folder: Path, name: str, tasks: list[Any], *aggregates: dict[str, Any], **more: Any) -> None:
    content = {"group": name, "task": tasks, **({"aggregate_metric_list": list(aggregates)} if aggregates else {})}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**content, **more}))


def planned(folder: Path, tasks: dict[str, Any]) -> list[PlannedTask]:
    return planned_tasks(write_suite(folder.parent, {"facts": tasks}), "facts", "test")


def test_a_group_stands_for_the_tasks_that_lm_eval_finds_in_it_with_what_it_changes_of_them(folder: Path) -> None:
    write_group(folder, "inner", ["a", {"task": "b", "num_fewshot": 2}], repeats=2, doc_to_text="{{country}}:")
    inline = {"group": "inside", "task": [{"task": "text", "task_alias": "words"}], "num_fewshot": 1}
    write_group(
        folder, "outer", ["inner", "marked", inline], {**BY_SIZE, "metric": "exact_match"}, doc_to_text="{{city}}"
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = manager.load("outer")["groups"]["outer"].get_all_tasks()
    suite = write_suite(folder.parent, {"facts": {"outer": "acc"}})
    ours = planned_tasks(suite, "facts", "test")
    assert [task.name for task in ours] == [task.task_name for task in theirs] == ["a", "b", "c", "d", "text"]
    for one, task in zip(ours, theirs, strict=True):
        for key in ("doc_to_text", "num_fewshot", "repeats", "task_alias"):
            assert one.file(manager, suite).get(key, getattr(type(task.config), key, None)) == task.get_config(key)


def test_what_a_group_changes_of_a_task_is_asked(folder: Path) -> None:
    write_group(folder, "changed", [{"task": "a", "doc_to_text": "{{country}}:"}], BY_SIZE)
    [task] = load_tasks(write_suite(folder.parent, {"facts": {"changed": "acc"}}), "test", EvaluationOptions())
    assert task.items[0].instances[0].args[0] == "Egypt:"


def test_the_tasks_of_a_group_that_has_a_score_by_size_count_as_parts_of_it(folder: Path) -> None:
    write_group(folder, "g", ["a", "b"], {**BY_SIZE, "filter_list": "none"})
    assert [
        (one.name, one.group, one.pooled, one.settings.metric) for one in planned(folder, {"c": "acc", "g": "acc"})
    ] == [
        ("c", "", False, "acc"),
        ("a", "g", True, "acc,none"),
        ("b", "g", True, "acc,none"),
    ]
    tasks = load_tasks(write_suite(folder.parent, {"facts": {"g": "acc"}}), "test", EvaluationOptions(test_items=1))
    assert [(one.entry, one.item_name(one.items[0])) for one in tasks] == [("g", "a/capital-6"), ("g", "b/capital-6")]


def test_the_tasks_of_a_tag_and_of_a_group_without_such_a_score_count_by_themselves_and_that_is_said(
    folder: Path,
) -> None:
    write_group(folder, "g", ["a", "b"], {**BY_SIZE, "metric": "acc_norm"})
    suite = write_suite(folder.parent, {"facts": {"marked": "acc", "g": "acc"}})
    tasks = load_tasks(suite, "test", EvaluationOptions(test_items=1))
    assert [(one.entry, one.group) for one in tasks] == [("a", "g"), ("b", "g"), ("c", "marked"), ("d", "marked")]
    assert notes_of(tasks) == [
        "group g: lm-eval gives it no score by acc, so that 2 tasks, a, b, count by themselves",
        "tag marked stands for 2 tasks, c, d, which count by themselves",
    ]


def test_tasks_of_a_group_without_its_metric_are_left_out_as_in_lm_eval_and_that_is_said(folder: Path) -> None:
    write_group(folder, "g", ["a", "text"], BY_SIZE)
    [task] = planned(folder, {"g": "acc"})
    assert task.name == "a"
    assert task.notes == ("group g: left out of it, as in lm-eval: 1 task, text, without acc",)


def test_a_plain_mean_of_tasks_has_a_domain_of_its_own(folder: Path) -> None:
    write_group(folder, "g", ["a", "b"], {**BY_SIZE, "weight_by_size": False})
    assert [(one.name, one.pooled) for one in planned(folder, {"g": "acc"})] == [("a", False), ("b", False)]
    with pytest.raises(InputError, match=r"group g is the plain mean of its tasks.*give it a domain of its own"):
        planned(folder, {"g": "acc", "c": "acc"})


REFUSED: list[tuple[list[Any], dict[str, Any], dict[str, Any], str]] = [
    (["a"], {"aggregation": "max"}, {"g": "acc"}, "group g: aggregate_metric_list: .*'max'"),
    (["a"], {}, {"gg": "acc"}, "no task 'gg' in .*did you mean 'g'"),
    (["a"], {}, {"g": "acc", "a": "acc"}, "task a is there twice, by itself and in g"),
    (["aa"], {}, {"g": "acc"}, "group g: .*no task 'aa' in .*did you mean 'a'"),
    (["text"], {}, {"g": "acc"}, "group g: none of its 1 task.* has a metric 'acc'"),
    ([{"task": "aa", "dataset_path": "x"}], {}, {"g": "acc"}, "group g: makes a task aa of its own"),
    ([{"dataset_path": "x"}], {}, {"g": "acc"}, "group g: an entry of its tasks names none: .*'x'"),
]


@pytest.mark.parametrize(("members", "aggregate", "tasks", "message"), REFUSED)
def test_a_group_that_cannot_be_counted_is_refused_by_name(
    folder: Path, members: list[Any], aggregate: dict[str, Any], tasks: dict[str, Any], message: str
) -> None:
    write_group(folder, "g", members, {**BY_SIZE, **aggregate})
    with pytest.raises(InputError, match=message):
        planned(folder, tasks)


def test_a_group_that_gives_its_tasks_other_functions_is_refused(folder: Path) -> None:
    (folder / "own.py").write_text("def score(items):\n    return 0\n")
    write_group(folder, "g", ["a"], BY_SIZE)
    with (folder / "g.yaml").open("a") as stream:
        stream.write("metric_list:\n  - metric: acc\n    aggregation: !function own.score\n")
    with pytest.raises(InputError, match="group g: gives its tasks another metric_list, with functions"):
        planned(folder, {"g": "acc"})
