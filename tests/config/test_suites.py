"""Suites that extend others: what is taken over, what is replaced, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config import Suite
from mergebench_ray.config.suite import built_in_suites
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.judges.judges import judged_tasks
from mergebench_ray.tasks.task_files import find_task_file, task_manager
from task_files import write_generation_task


def suite(folder: Path, file: str = "suite.yaml", **content: Any) -> Suite:
    (folder / file).write_text(to_yaml({"name": "own", **content}))
    return Suite.load(str(folder / file))


def test_a_suite_that_says_nothing_else_is_the_one_it_extends(tmp_path: Path) -> None:
    own, other = suite(tmp_path, extends="mergebench"), Suite.load("mergebench")
    differing = {"name", "description", "extends", "tasks_folder"}
    assert own.model_dump(exclude=differing) == other.model_dump(exclude=differing)
    assert (own.name, own.description) == ("own", "")
    assert own.tasks_paths == other.tasks_paths
    assert find_task_file(task_manager(own), own, "mmlu") == find_task_file(task_manager(other), other, "mmlu")
    assert judged_tasks(own, own.domains, ["test"]) == judged_tasks(other, other.domains, ["test"])


def test_entries_are_added_replaced_and_left_out_one_by_one(tmp_path: Path) -> None:
    own = suite(
        tmp_path,
        extends="mergebench",
        domains={
            "math": {"tasks": {"gsm8k": "exact_match,strict-match"}},
            "coding": None,
            "history": {"tasks": {"mine": "acc"}},
        },
        forgetting={"mmlu": None},
        lm_eval_folders=["arc", "gsm8k"],
        gated_data=["owner/secret"],
        max_model_len=512,
    )
    other = Suite.load("mergebench")
    assert list(own.domains) == ["instruction", "math", "multilingual", "safety", "history"]
    assert list(own.domains["math"].tasks) == ["gsm8k"]
    assert own.domains["safety"] == other.domains["safety"]
    assert set(own.forgetting) == set(other.forgetting) - {"mmlu"}
    assert own.lm_eval_folders == [*other.lm_eval_folders, "arc"]
    assert own.gated_data == [*other.gated_data, "owner/secret"]
    assert (own.max_model_len, own.judges) == (512, other.judges)


def test_task_files_of_both_suites_are_found_and_those_of_the_nearer_one_come_first(tmp_path: Path) -> None:
    for name in ("far", "near"):
        (tmp_path / name / "tasks").mkdir(parents=True)
        write_generation_task(tmp_path / name / "tasks", name)
        write_generation_task(tmp_path / name / "tasks", "both", description=name)
    suite(tmp_path / "far", tasks_folder="tasks", domains={"a": {"tasks": {"far": "exact_match"}}})
    own = suite(
        tmp_path / "near",
        extends="../far/suite.yaml",
        tasks_folder="tasks",
        domains={"b": {"tasks": {"near": "exact_match"}}},
    )
    manager = task_manager(own)
    assert [find_task_file(manager, own, name)["task"] for name in ("far", "near")] == ["far", "near"]
    assert find_task_file(manager, own, "both")["description"] == "near"


def test_a_suite_can_extend_one_that_extends_another(tmp_path: Path) -> None:
    suite(tmp_path, "middle.yaml", extends="smollm2-mini", domains={"math": None})
    own = suite(tmp_path, extends="middle.yaml", domains={"coding": None})
    assert list(own.domains) == ["instruction", "multilingual", "safety"]
    assert own.base == Suite.load("smollm2-mini").base
    assert own.tasks_paths == (built_in_suites()["smollm2-mini"].parent / "tasks",)


def test_suites_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a.yaml\n")
    with pytest.raises(InputError, match=r"b\.yaml: extends 'a\.yaml': that suite extends this one"):
        Suite.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"extends": "mergebensh"}, r"suite\.yaml: extends 'mergebensh': neither a built-in suite \(.*\) nor a file"),
        ({"extends": 3}, "extends = 3"),
        ({"extends": "mergebench", "domains": {"maths": None}}, r"domains\.maths = None"),
        ({"extends": "mergebench", "domains": [1]}, r"domains = \[1\]"),
        ({"extends": "mergebench", "lm_eval_folders": [3]}, r"lm_eval_folders\.\d+ = 3"),
        ({"extends": "mergebench", "domain": {}}, "unknown key 'domain'; did you mean 'domains'"),
    ],
)
def test_what_a_suite_cannot_extend_or_take_over_is_named(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        suite(tmp_path, **content)


def test_where_tasks_lie_does_not_depend_on_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster starts in another folder than the command did."""
    (tmp_path / "tasks").mkdir()
    suite(tmp_path, extends="smollm2-mini", tasks_folder="tasks")
    monkeypatch.chdir(tmp_path)
    own = Suite.load("suite.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert own.tasks_paths[-1] == tmp_path / "tasks"
