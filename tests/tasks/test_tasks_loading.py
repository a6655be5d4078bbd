from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from lm_eval.utils import apply_template

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import grade, task_estimate
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest
from task_files import (
    capital_items,
    write_choice_task,
    write_generation_task,
    write_lines,
    write_suite,
    write_text_task,
)

ALL = EvaluationOptions(allow_code_execution=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    return tasks


def one_task(folder: Path, name: str, metric: Any, split: Any = "validation", **options: Any) -> ScoredTask:
    suite = write_suite(folder.parent, {"facts": {name: metric}})
    return load_tasks(suite, split, EvaluationOptions(**options))[0]


def ids(task: ScoredTask) -> list[str]:
    return [item.id for item in task.items]


def test_each_split_is_asked_alone(folder: Path) -> None:
    write_choice_task(folder)
    assert ids(one_task(folder, "capital_choice", "acc")) == [f"capital-{n}" for n in range(2, 6)]
    assert ids(one_task(folder, "capital_choice", "acc", "test")) == [f"capital-{n}" for n in range(6, 12)]


def test_a_limit_takes_the_first_items_of_its_own_split(folder: Path) -> None:
    write_choice_task(folder)
    limits = {"validation_items": 2, "test_items": 3}
    assert ids(one_task(folder, "capital_choice", "acc", **limits)) == ["capital-2", "capital-3"]
    assert ids(one_task(folder, "capital_choice", "acc", "test", **limits)) == ["capital-6", "capital-7", "capital-8"]


def test_items_without_an_id_are_named_by_their_prompt(folder: Path) -> None:
    bare = [{key: item[key] for key in ("country", "city")} for item in capital_items(2, 4)]
    write_lines(folder / "validation.jsonl", bare)
    write_lines(folder / "train.jsonl", bare[:1])
    write_lines(folder / "test.jsonl", bare[3:])
    write_generation_task(folder)
    names = ids(one_task(folder, "capital_text", "exact_match"))
    assert len(set(names)) == 4
    assert ids(one_task(folder, "capital_text", "exact_match", "test")) == names[3:]


def test_the_digest_of_the_items_changes_with_any_of_them(folder: Path) -> None:
    write_choice_task(folder)
    digest = items_digest([one_task(folder, "capital_choice", "acc")])
    assert items_digest([one_task(folder, "capital_choice", "acc")]) == digest
    others = [
        one_task(folder, "capital_choice", "acc_norm"),
        one_task(folder, "capital_choice", "acc", "test"),
        one_task(folder, "capital_choice", "acc", validation_items=3),
    ]
    assert len({digest, *(items_digest([other]) for other in others)}) == 4


def test_a_metric_is_taken_after_the_filter_that_it_names(folder: Path) -> None:
    write_generation_task(folder)
    answers = [[[f"{item['city']}, of course"]] for item in capital_items(2, 4)]
    first_word = one_task(folder, "capital_text", "exact_match,first-word")
    assert grade(first_word, answers) == [1.0] * 4
    assert grade(one_task(folder, "capital_text", "exact_match,whole"), answers) == [0.0] * 4
    assert one_task(folder, "capital_text", "exact_match").filter_name == "first-word"


def test_grading_one_candidate_leaves_nothing_for_the_next(folder: Path) -> None:
    write_generation_task(folder)
    task = one_task(folder, "capital_text", "exact_match")
    right = [[[item["city"]]] for item in capital_items(2, 4)]
    wrong = [[["Atlantis"]] for _ in right]
    assert grade(task, right) == [1.0] * 4
    assert grade(task, wrong) == [0.0] * 4
    assert grade(task, right) == [1.0] * 4
    assert all(not instance.resps and not instance.filtered_resps for item in task.items for instance in item.instances)


def test_multiple_choice_is_graded_from_the_likelihood_of_each_choice(folder: Path) -> None:
    write_choice_task(folder)
    task = one_task(folder, "capital_choice", "acc")
    likelihoods = [
        [-3.0, -2.0, -5.0, -1.0],
        [-1.0, -2.0, -5.0, -1.5],
        [-9.0, -9.0, -9.0, -1.0],
        [-9.0, -9.0, -9.0, -1.0],
    ]
    values = grade(task, [[[(value, False)] for value in row] for row in likelihoods])
    assert values == [1.0, 0.0, 1.0, 1.0]
    assert task_estimate(task, values)[0].value == 0.75


def test_a_batch_scorer_beside_the_task_grades_all_items_in_one_call(folder: Path) -> None:
    (folder / "hooks.py").write_text(
        "calls = []\n"
        "def score_all(documents, answers):\n"
        "    calls.append(len(documents))\n"
        "    assert len(calls) == 1\n"
        "    return [{'exact_match': float(a[0] == d['city'])} for d, a in zip(documents, answers, strict=True)]\n",
        encoding="utf-8",
    )
    write_generation_task(folder, metadata={"version": 1.0, "batch_scorer": "hooks.score_all"})
    task = one_task(folder, "capital_text", "exact_match")
    answers = [[[item["city"]]] for item in capital_items(2, 4)]
    answers[0] = [["Atlantis"]]
    assert grade(task, answers) == [0.0, 1.0, 1.0, 1.0]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("runs code", {"unsafe_code": True}, "capital_text.*evaluation.allow_code_execution: true"),
    ("no validation split", {"validation_split": None}, "capital_text has no validation split"),
    ("examples from test", {"fewshot_split": "test", "num_fewshot": 1}, "few-shot examples come from the split test"),
    (
        "a field in no item",
        {"doc_to_text": "{{nation}} has"},
        "validation.jsonl.*field 'nation' is missing",
    ),
    ("a bare field in no item", {"doc_to_text": "nation"}, "validation.jsonl.*field 'nation' is missing"),
    ("a split that the data lack", {"validation_split": "dev"}, "capital_text: .*has no split 'dev'"),
    ("a key that lm-eval does not know", {"few_shots": 3}, "capital_text: .*unexpected keyword argument 'few_shots'"),
    ("a broken template", {"doc_to_text": "{{country"}, "capital_text: .*TemplateSyntaxError"),
    ("a text that is a number", {"doc_to_text": 3}, "capital_text: .*Context is not a string"),
    ("two splits in one", {"test_split": ["a", "b"]}, "capital_text: test_split: give the name of one split"),
    (
        "kinds of request, and no metric",
        {"output_type": ["a"], "metric_list": None},
        "capital_text: output_type: give the name of one kind of request",
    ),
    (
        "an unknown filter",
        {"filter_list": [{"name": "a", "filter": [{"function": "b"}]}]},
        "capital_text: .*'b'",
    ),
    ("few-shot samples that are none", {"num_fewshot": 1, "fewshot_config": {"samples": "a"}}, "capital_text: .*sampl"),
    (
        "a scorer that is not there",
        {"metadata": {"batch_scorer": "hooks.score"}},
        "batch_scorer 'hooks.score' not",
    ),
]


@pytest.mark.parametrize(("settings", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_task_that_cannot_be_scored_is_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    write_generation_task(folder, **settings)
    with pytest.raises(InputError, match=message):
        one_task(folder, "capital_text", "exact_match")


def test_an_item_that_lacks_a_field_is_named_by_file_row_and_field(folder: Path) -> None:
    items = capital_items(2, 4)
    del items[2]["city"]
    write_lines(folder / "validation.jsonl", items)
    write_generation_task(folder)
    with pytest.raises(InputError, match=r"validation\.jsonl, item 3: field 'city' is missing"):
        one_task(folder, "capital_text", "exact_match")


NULLS: list[tuple[str, str]] = [
    ("{{context or ''}}The capital of {{country}} is", "The capital of Japan is"),
    ("{{context | default('', true)}}{{country}}", "Japan"),
    ("{{context | d('-', true)}}{{country}}", "-Japan"),
    ("{{ '' if context is none else context }}{{country}}", "Japan"),
    ("{{ (context or 'of') ~ ' ' ~ country }}", "of Japan"),
    ("{{ [context, country] | select | join(' ') }}", "Japan"),
    ("{% if context %}{{context}}{% endif %}{{country}}", "Japan"),
    ("{{ context | int(0) }} {{country}}", "0 Japan"),
    ("{{ context | int(0) }} or none of {{country}}", "0 or none of Japan"),
    ("{{ [context] | length }} {{country}}", "1 Japan"),
    ("{{ [context, country].index(country) }}", "1"),
    ("{{ context | map('default', '') | join }}{{country}}", "Japan"),
]


@pytest.mark.parametrize(("template", "expected"), NULLS)
def test_a_template_that_says_what_to_print_without_a_field_is_rendered(
    folder: Path, template: str, expected: str
) -> None:
    items = [{**capital_items(1, 1)[0], "context": None}, {**capital_items(2, 1)[0], "context": "So."}]
    for split in ("train", "validation", "test"):
        write_lines(folder / f"{split}.jsonl", items)
    write_generation_task(folder, doc_to_text=template)
    assert apply_template(template, items[0]) == expected
    assert one_task(folder, "capital_text", "exact_match").items[0].instances[0].args[0] == expected


@pytest.mark.parametrize("template", [template for template, _ in NULLS[7:]])
def test_a_field_that_the_data_lack_is_missing_whatever_a_template_makes_of_a_null(folder: Path, template: str) -> None:
    write_generation_task(folder, doc_to_text=template)
    with pytest.raises(InputError, match=r"validation\.jsonl.*field 'context' is missing"):
        one_task(folder, "capital_text", "exact_match")


@pytest.mark.parametrize(
    "template",
    [
        "{{context}} {{country}}",
        "{{context ~ country or ''}}{{context}}",
        "context",
        "{{ context | upper }}",
        "{{ [context, country] | join(' ') }}",
        "{{ context.strip() }}",
        "{{ context | join(' ') }}",
    ],
)
def test_a_template_that_would_print_none_is_refused(folder: Path, template: str) -> None:
    items = [{**capital_items(1, 1)[0], "context": "So."}, {**capital_items(2, 1)[0], "context": None}]
    for split in ("train", "validation", "test"):
        write_lines(folder / f"{split}.jsonl", items)
    write_generation_task(folder, doc_to_text=template)
    with pytest.raises(InputError, match=r"validation\.jsonl, item 2: field 'context' is missing"):
        one_task(folder, "capital_text", "exact_match")


def test_a_file_without_a_column_is_named_with_the_field(folder: Path) -> None:
    write_lines(folder / "validation.jsonl", [{"id": "1", "country": "France"}])
    write_generation_task(folder)
    with pytest.raises(InputError, match=r"validation\.jsonl, item 1: field 'city' is missing"):
        one_task(folder, "capital_text", "exact_match")


def test_a_data_file_that_is_not_there_is_named(folder: Path) -> None:
    write_generation_task(folder)
    (folder / "validation.jsonl").unlink()
    with pytest.raises(InputError, match=r"task capital_text: .*validation\.jsonl"):
        one_task(folder, "capital_text", "exact_match")


def test_data_files_are_looked_for_beside_the_task_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_generation_task(
        folder, dataset_kwargs={"data_files": {"validation": "validation.jsonl", "test": ["*t.jsonl"]}}
    )
    monkeypatch.chdir("/")
    file = folder / "capital_text.yaml"
    file.write_text(file.read_text().replace("training_split: train\n", ""))
    assert len(one_task(folder, "capital_text", "exact_match").items) == 4
    assert len(one_task(folder, "capital_text", "exact_match", "test").items) == 6


def test_no_server_is_told_of_data_that_are_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def look_up(host: object, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    write_choice_task(folder)
    assert one_task(folder, "capital_choice", "acc").items
    assert asked == []


def test_data_files_in_the_working_folder_are_still_found_unless_they_may_be_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    write_generation_task(folder, dataset_kwargs={"data_files": {"validation": "here.jsonl"}}, training_split=None)
    file = folder / "capital_text.yaml"
    file.write_text(file.read_text().replace("test_split: test\n", ""))
    write_lines(folder.parent / "here.jsonl", capital_items(0, 3))
    assert len(one_task(folder, "capital_text", "exact_match").items) == 3
    write_lines(folder / "here.jsonl", capital_items(0, 2))
    with pytest.raises(InputError, match=r"capital_text: data_files: 'here\.jsonl' is in .*tasks, beside .*working"):
        one_task(folder, "capital_text", "exact_match")
    monkeypatch.chdir(folder)
    assert len(one_task(folder, "capital_text", "exact_match").items) == 2


@pytest.mark.slow
def test_a_task_that_is_not_found_is_answered_with_the_key_that_lets_it_be(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"no task 'arc_easy' in .*tasks; lm-eval has one: add arc to .*lm_eval_folders"
    ):
        one_task(folder, "arc_easy", "acc")
    suite = Suite.model_validate({"name": "s", "domains": {"a": {"tasks": {"mine": "acc"}}}})
    with pytest.raises(InputError, match=r"no task 'mine' in lm-eval; .*name their folder in the suite's tasks_folder"):
        load_tasks(suite, "validation", ALL)


def test_unknown_names_are_refused_with_the_closest(folder: Path) -> None:
    write_generation_task(folder)
    with pytest.raises(InputError, match=r"no task 'capital_txt'.*did you mean 'capital_text'"):
        one_task(folder, "capital_txt", "exact_match")
    with pytest.raises(InputError, match=r"no metric 'exact_mach'.*did you mean 'exact_match'"):
        one_task(folder, "capital_text", "exact_mach")
    with pytest.raises(InputError, match=r"no filter 'hole'.*did you mean 'whole'"):
        one_task(folder, "capital_text", "exact_match,hole")
    with pytest.raises(InputError, match="split 'training': choose one of validation, final, test"):
        one_task(folder, "capital_text", "exact_match", "training")
    with pytest.raises(InputError, match=r"no domain 'fact'.*did you mean 'facts'"):
        one_task(folder, "capital_text", "exact_match", domains=["fact"])


def test_answers_that_leave_no_room_for_a_prompt_are_refused(folder: Path) -> None:
    write_generation_task(folder, generation_kwargs={"until": ["."], "max_gen_toks": 256})
    with pytest.raises(InputError, match="capital_text: answers of 256 tokens leave no room"):
        one_task(folder, "capital_text", "exact_match")


def test_task_files_are_checked_before_any_data_is_read(folder: Path) -> None:
    write_generation_task(folder)
    (folder / "validation.jsonl").unlink()
    suite = write_suite(folder.parent, {"facts": {"capital_text": "exact_match"}, "other": {"nothing": "acc"}})
    with pytest.raises(InputError, match=r"no task 'nothing'"):
        load_tasks(suite, "validation", ALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: broken\n a: [\n", r"broken\.yaml: lm-eval cannot read it \(ScannerError"),
        ("- a\n", r"broken\.yaml: lm-eval cannot read it .*got list"),
        ("task: broken\ninclude: nowhere.yaml\n", r"broken\.yaml: lm-eval cannot read it .*nowhere\.yaml"),
    ],
)
def test_a_task_file_that_lm_eval_passes_over_is_named(folder: Path, text: str, message: str) -> None:
    write_generation_task(folder)
    (folder / "broken.yaml").write_text(text)
    assert one_task(folder, "capital_text", "exact_match").items
    with pytest.raises(InputError, match=message):
        one_task(folder, "broken", "exact_match")


@pytest.mark.parametrize("code", ["def f(: pass", "import sys; sys.exit(1)", "raise RuntimeError('no')", "f = 3"])
def test_a_module_that_cannot_be_used_is_one_error(folder: Path, code: str) -> None:
    (folder / "hooks.py").write_text(code)
    write_generation_task(folder)
    file = folder / "capital_text.yaml"
    file.write_text(file.read_text() + "doc_to_text: !function hooks.f\n")
    with pytest.raises(InputError, match="capital_text: "):
        one_task(folder, "capital_text", "exact_match")


def test_a_pipe_among_a_task_files_data_is_refused(folder: Path) -> None:
    write_generation_task(folder)
    (folder / "validation.jsonl").unlink()
    os.mkfifo(folder / "validation.jsonl")
    with pytest.raises(InputError, match=r"capital_text: .*validation\.jsonl: not a regular file"):
        one_task(folder, "capital_text", "exact_match")


def test_a_missing_tasks_folder_is_refused(tmp_path: Path) -> None:
    suite: Suite = write_suite(tmp_path, {"facts": {"capital_text": "exact_match"}})
    with pytest.raises(InputError, match=r"tasks_folder .*no such folder"):
        load_tasks(suite, "validation", ALL)


def test_examples_before_texts_that_are_scored_whole_are_refused(folder: Path) -> None:
    write_text_task(folder)
    with pytest.raises(InputError, match="task texts: num_fewshot: 2: texts are scored by themselves"):
        one_task(folder, "texts", {"metric": "bits_per_byte", "num_fewshot": 2})
