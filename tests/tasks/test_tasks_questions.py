"""What is kept of an item's question, so that its answers can be read beside it."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.runs.items import read_questions, write_questions
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.questions import question_rows
from task_files import TEXTS, write_choice_task, write_generation_task, write_suite, write_text_task


def test_a_question_is_its_prompt_choices_and_expected_answer(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_choice_task(folder)
    write_generation_task(folder)
    suite = write_suite(tmp_path, {"choice": {"capital_choice": "acc"}, "text": {"capital_text": "exact_match"}})
    tasks = load_tasks(suite, "test", EvaluationOptions(test_items=1))
    choice, text = question_rows(tasks)
    assert choice["prompt"] == "The capital of Egypt is\n[0] Athens\n[1] Beijing\n[2] London\n[3] Cairo"
    assert choice["expected"] == "[3]"
    assert (text["prompt"], text["expected"]) == ("The capital of Egypt is", "Cairo")
    assert [row["prompt_digest"] for row in (choice, text)] == [task.items[0].prompt_digest for task in tasks]


def test_the_question_of_a_text_that_is_scored_is_that_text(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    write_text_task(tmp_path / "tasks")
    suite = write_suite(tmp_path, {"text": {"texts": "word_perplexity"}})
    rows = [*question_rows(load_tasks(suite, "test", EvaluationOptions()))]
    assert [(row["prompt"], row["expected"]) for row in rows] == [(text, "") for text in TEXTS]


def test_questions_are_kept_once_for_all_models_of_a_run(tmp_path: Path) -> None:
    row = {"domain": "d", "task": "t", "item": "1", "prompt_digest": "x", "prompt": "What?", "expected": ""}
    assert read_questions(tmp_path, "test") is None
    write_questions(tmp_path, "test", [row])
    write_questions(tmp_path, "test", [])
    kept = read_questions(tmp_path, "test")
    assert kept is not None
    assert kept.to_pylist() == [row]
