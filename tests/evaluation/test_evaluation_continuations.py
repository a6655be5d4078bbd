"""Continuations that do not fit the model are refused by task and item, as lm-eval would not score them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from command_line import CommandLine
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.continuations import check_continuations
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask
from task_files import capital_items, write_choice_task, write_lines, write_suite, write_text_task
from tiny_models import tiny_llama, tiny_specialist

LENGTH = 64  # a delimiter's space and 63 letters fit
REFUSAL = r"task capital_choice, item capital-7: the continuation ' x{39}\.\.\.' has 65 tokens, .*max_model_len 64"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte a token."""
    folder = tmp_path_factory.mktemp("models")
    tiny_specialist(folder / "math", tiny_llama(folder / "base"), seed=1)
    return folder


def write_with_choice(folder: Path, choice: str, split: str = "test") -> None:
    """A task whose second item of a split has that choice among others."""
    (folder / "tasks").mkdir()
    items = capital_items(6, 2)
    items[1]["choices"][0] = choice
    write_lines(folder / "tasks" / f"{split}.jsonl", items)
    write_choice_task(folder / "tasks")


def with_choice(folder: Path, choice: str) -> list[ScoredTask]:
    write_with_choice(folder, choice)
    suite = write_suite(folder, {"math": {"capital_choice": "acc"}}, max_model_len=LENGTH)
    return load_tasks(suite, "test", EvaluationOptions())


def test_a_continuation_longer_than_the_model_is_named_by_task_and_item(models: Path, tmp_path: Path) -> None:
    tasks = with_choice(tmp_path, "x" * LENGTH)
    with pytest.raises(InputError, match=REFUSAL):
        check_continuations(tasks, models / "base", LENGTH)
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "base", trust_remote_code=False)
    with pytest.raises(InputError, match=REFUSAL):
        PreparedSplit("test", tasks, tokenizer, LENGTH)


def test_a_continuation_as_long_as_the_model_is_scored(models: Path, tmp_path: Path) -> None:
    tasks = with_choice(tmp_path, "x" * (LENGTH - 1))
    check_continuations(tasks, models / "base", LENGTH)
    assert PreparedSplit("test", tasks, AutoTokenizer.from_pretrained(models / "base", trust_remote_code=False), LENGTH)


def test_a_text_of_more_bytes_than_the_model_has_tokens_may_still_fit(tmp_path: Path, models: Path) -> None:
    tasks = with_choice(tmp_path, "<pad>" * (LENGTH // 5 + 1))
    check_continuations(tasks, models / "base", LENGTH)


def test_no_tokenizer_is_read_where_all_continuations_are_short(tmp_path: Path) -> None:
    check_continuations(with_choice(tmp_path, "Rome"), tmp_path / "nowhere", LENGTH)


def test_only_whole_texts_need_a_tokenizer_with_a_token_to_begin_with(models: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "base", trust_remote_code=False)
    tokenizer.bos_token = tokenizer.eos_token = None
    assert PreparedSplit("test", with_choice(tmp_path, "Rome"), tokenizer, LENGTH)
    (tmp_path / "other" / "tasks").mkdir(parents=True)
    write_text_task(tmp_path / "other" / "tasks")
    suite = write_suite(tmp_path / "other", {"math": {"texts": "bits_per_byte"}}, max_model_len=LENGTH)
    with pytest.raises(InputError, match="task texts: the tokenizer has neither BOS nor EOS"):
        PreparedSplit("test", load_tasks(suite, "test", EvaluationOptions()), tokenizer, LENGTH)


@pytest.mark.parametrize(("command", "split"), [("evaluate", "test"), ("tune", "validation"), ("tune", "test")])
def test_commands_refuse_it_before_anything_is_started(
    command: str,
    split: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_with_choice(tmp_path, "x" * LENGTH, split)
    write_suite(tmp_path, {"math": {"capital_choice": "acc"}}, max_model_len=LENGTH)
    monkeypatch.setattr(f"mergebench_ray.commands.{command}.ray_session", lambda *_, **__: pytest.fail("started"))
    suite = tmp_path / "suite.yaml"
    sweep = {
        "name": "x",
        "suite": str(suite),
        "base": str(models / "base"),
        "specialists": {"math": str(models / "math")},
        "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
    }
    (tmp_path / "sweep.yaml").write_text(to_yaml(sweep))
    arguments = {"evaluate": [models / "base", "--suite", suite], "tune": [tmp_path / "sweep.yaml", "--out", "run"]}
    line = CommandLine(capsys, monkeypatch).refused(command, *arguments[command])
    assert "task capital_choice, item capital-7: the continuation" in line
