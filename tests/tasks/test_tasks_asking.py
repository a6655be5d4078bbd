"""How items are put to a model, and which, where it is not as a suite has it: as lm-eval's own options do."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mergebench_ray.commands.first_checks import AskedAs, evaluation_settings
from mergebench_ray.config.evaluation import ModelEvaluationOptions
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.chat import ChatTemplate
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, notes_of
from task_files import write_choice_task, write_generation_task, write_suite, write_text_task
from tiny_models import tiny_tokenizer

TURNS = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    return tasks


def tokenizer_with(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def load(folder: Path, metrics: dict[str, Any], template: str = TURNS, **options: Any) -> list[ScoredTask]:
    suite = write_suite(folder.parent, {"facts": metrics})
    chat = ChatTemplate(tokenizer_with(template), "tiny") if options.get("apply_chat_template") else None
    return load_tasks(suite, "test", parse_model(ModelEvaluationOptions, options, "evaluate"), template=chat)


ASKED: list[dict[str, Any]] = [
    {},
    {"system_instruction": "Be brief."},
    {"apply_chat_template": True},
    {"apply_chat_template": True, "system_instruction": "Be brief."},
    {"apply_chat_template": True, "fewshot_as_multiturn": False, "system_instruction": "Be brief."},
]


@pytest.mark.parametrize("options", ASKED, ids=str)
def test_prompts_are_those_of_lm_eval(folder: Path, options: dict[str, Any]) -> None:
    write_choice_task(folder, "choice", num_fewshot=2, description="Capitals.\n\n")
    write_generation_task(folder, "text", num_fewshot=1, gen_prefix="It is", filter_list=None)
    tasks = load(folder, {"choice": "acc", "text": "exact_match"}, **options)
    chat = options.get("apply_chat_template", False)
    lm: Any = SimpleNamespace(tokenizer=tokenizer_with(TURNS), chat_template_args={})
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(["choice", "text"])["tasks"]
    for task in tasks:
        theirs: Any = loaded[task.name]
        theirs.set_fewshot_seed(1234)
        theirs.build_all_requests(
            system_instruction=options.get("system_instruction"),
            apply_chat_template=chat,
            fewshot_as_multiturn=options.get("fewshot_as_multiturn", chat),
            chat_template=(lambda *a, **b: HFLM.apply_chat_template(cast(HFLM, lm), *a, **b)) if chat else None,
        )
        ours = [instance.args for item in task.items for instance in item.instances]
        assert ours == [instance.args for instance in theirs.instances]
        if chat:
            assert ours[0][0].startswith("<s>")


def test_a_template_that_refuses_system_messages_gets_none_as_in_lm_eval_and_that_is_said(folder: Path) -> None:
    write_generation_task(folder, "text")
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    [task] = load(folder, {"text": "exact_match"}, NO_SYSTEM, **options)
    assert task.items[0].instances[0].args[0] == "<s>user: The capital of Egypt is</s><s>assistant: "
    assert notes_of([task]) == [
        "the model's chat template refuses system messages, so that they are left out, as in lm-eval"
    ]


def test_texts_that_are_scored_whole_have_no_conversation_and_that_is_said(folder: Path) -> None:
    write_text_task(folder)
    [task] = load(folder, {"texts": "bits_per_byte"}, system_instruction="Be brief.")
    [note] = task.notes
    assert "texts are scored by themselves, without chat template and system instruction" in note


def test_options_of_generation_replace_those_of_tasks_that_write_and_of_no_others(folder: Path) -> None:
    write_generation_task(folder, "text")
    write_choice_task(folder, "choice")
    settings = {"metric": "exact_match", "decoding": {"max_answer_tokens": 9}}
    tasks = load(folder, {"text": settings, "choice": "acc"}, gen_kwargs={"max_gen_toks": 3, "top_k": 1})
    [text] = [task for task in tasks if task.name == "text"]
    kwargs = text.items[0].instances[0].args[1]
    assert (kwargs["max_gen_toks"], kwargs["top_k"], kwargs["until"]) == (3, 1, ["\n", "."])


def test_samples_are_places_in_the_split_and_other_tasks_are_asked_whole(folder: Path) -> None:
    write_choice_task(folder, "a")
    write_choice_task(folder, "b")
    one, other = load(folder, {"a": "acc", "b": "acc"}, samples={"a": [5, 0]})
    assert [item.id for item in one.items] == ["capital-6", "capital-11"]
    assert len(other.items) == 6


def test_a_share_of_items_is_rounded_up_as_in_lm_eval(folder: Path) -> None:
    write_choice_task(folder, "a")
    settings = evaluation_settings(None, False, False, None, None, AskedAs(limit=0.2))
    [task] = load(folder, {"a": "acc"}, **settings)
    assert [item.id for item in task.items] == ["capital-6", "capital-7"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"gen_kwargs": {"num_beams": 4}}, r"gen_kwargs: task text: generation_kwargs\.num_beams"),
    ({"samples": {"txt": [0]}}, r"samples: no task 'txt' is scored; did you mean 'text'"),
    ({"samples": {"text": [6]}}, "samples: task text has no item 6 in its test split"),
    ({"samples": {"text": []}}, "samples.*text: give the places of its items, from 0"),
    ({"samples": {"text": [0]}, "limit": 0.5}, "limit and samples both say which items are asked"),
    ({"samples": {"text": [0]}, "limit": 2}, "items and samples both say which items are asked"),
    ({"samples": "{"}, "samples '{': not valid JSON"),
    ({"samples": "no-such-file"}, "samples 'no-such-file': neither JSON nor a file"),
    ({"limit": 1.5}, r"limit 1\.5: give a number of items, or a share"),
    ({"limit": 0}, "limit 0: give a number of items, or a share"),
    ({"limit": math.inf}, "limit inf: give a number of items, or a share"),
    ({"limit": math.nan}, "limit nan: give a number of items, or a share"),
    ({"fewshot_as_multiturn": True}, "fewshot_as_multiturn is about a chat template"),
    ({"system_instruction": ""}, "system_instruction"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=[str(one[0]) for one in REFUSED])
def test_options_that_make_no_sense_are_refused_by_name(folder: Path, asked: dict[str, Any], message: str) -> None:
    write_generation_task(folder, "text")
    with pytest.raises(InputError, match=message):
        load(folder, {"text": "exact_match"}, **evaluation_settings(None, False, False, None, None, AskedAs(**asked)))


def test_options_of_generation_where_nothing_is_written_are_refused(folder: Path) -> None:
    write_choice_task(folder, "a")
    with pytest.raises(InputError, match="gen_kwargs: none of the tasks has answers that are written"):
        load(folder, {"a": "acc"}, gen_kwargs={"top_k": 1})


def test_two_numbers_of_items_are_refused() -> None:
    with pytest.raises(InputError, match="items 3 and limit 2 both say how many items are asked"):
        evaluation_settings(3, False, False, None, None, AskedAs(limit=2))


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(InputError, match="tiny: its tokenizer has no chat template; leave apply_chat_template out"):
        ChatTemplate(tokenizer_with(""), "tiny")
