"""Made-up data files, task files and decoding options: each gives a result or one line that says what is wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.commands.calibration import read_samples
from mergebench_ray.config import CalibrationSource, Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.examples import check_examples
from mergebench_ray.tasks.generation_options import read_generation_options
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.local_data import SUFFIXES, LocalSplits, check_data_files
from task_files import capital_items, write_choice_task, write_generation_task, write_suite

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
fields = st.sampled_from(["id", "country", "city", "choices", "gold", "prompt", "response"]) | st.text(max_size=5)
rows = st.lists(st.dictionaries(fields, values, max_size=6), max_size=4)
hard_lines = st.sampled_from(
    [
        '{"id": ' + "9" * 5000 + "}",
        '{"id": ' + "[" * 3000,
        '{"id": 1e999}',
        '{"city": "\\ud800"}',
        "\ufeff{}",
        "\0",
        "[1]",
    ]
)
NUMBERS = itertools.count()


def result_or_one_line(function: Callable[[], Any]) -> Any:
    """What it gives; None where it refuses its input in one line."""
    try:
        return function()
    except InputError:
        return None


@given(content=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_are_rows_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"some{suffix}"
    file.write_bytes(content)
    found = result_or_one_line(lambda: LocalSplits("a/b", None, file, None)["test"])
    assert found is None or len(found) > 0


@given(made=rows, extra=st.lists(hard_lines | values.map(json.dumps), max_size=2), as_list=st.booleans())
def test_any_json_is_rows_or_refused(tmp_path: Path, made: list[Any], extra: list[str], as_list: bool) -> None:
    file = tmp_path / ("some.json" if as_list else "some.jsonl")
    lines = [*map(json.dumps, made), *extra]
    file.write_text(f"[{', '.join(lines)}]" if as_list else "\n".join(lines), encoding="utf-8")
    found = result_or_one_line(lambda: LocalSplits("a/b", None, file, None)["test"])
    if found is not None and not extra:
        assert len(found) == len(made)


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> list[Suite]:
    """A suite of questions to answer and one of choices, over a data set that is not there."""
    found = []
    for write, name, metric in (
        (write_generation_task, "capital_text", "exact_match"),
        (write_choice_task, "capital_choice", "acc"),
    ):
        folder = tmp_path_factory.mktemp(name)
        (folder / "tasks").mkdir()
        write(folder / "tasks", dataset_path="a/b", dataset_kwargs=None)
        found.append(write_suite(folder, {"facts": {name: metric}}))
    return found


@given(made=rows, ordinary=st.integers(0, 2), number=st.integers(0, 1))
def test_a_task_over_any_rows_has_items_or_is_refused(
    tmp_path: Path, suites: list[Suite], made: list[Any], ordinary: int, number: int
) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, [*capital_items(0, ordinary), *made])), encoding="utf-8")
    options = EvaluationOptions(data={"a/b": str(file)})
    found = result_or_one_line(lambda: load_tasks(suites[number], "test", options))
    if ordinary and not made:
        assert [len(task.items) for task in found] == [ordinary]


KEYS = """training_split validation_split test_split fewshot_split fewshot_config num_fewshot repeats doc_to_text
    doc_to_target doc_to_choice generation_kwargs metric_list filter_list metadata output_type description class tag
    target_delimiter gen_prefix process_docs unsafe_code"""
keys = st.sampled_from(KEYS.split())
templates = st.sampled_from(["{{country}}", "{{", "{% if %}", "{{nation}}", "country", "{{choices[9]}}", "{{gold/0}}"])


@given(changed=st.dictionaries(keys, values | templates, min_size=1, max_size=3), number=st.integers(0, 1))
def test_a_task_file_with_any_values_has_items_or_is_refused(
    tmp_path: Path, changed: dict[str, Any], number: int
) -> None:
    # lm-eval's index of a folder is kept, so every input has its own.
    folder = tmp_path / str(next(NUMBERS))
    (folder / "tasks").mkdir(parents=True)
    name, write, metric = [
        ("capital_text", write_generation_task, "exact_match"),
        ("capital_choice", write_choice_task, "acc"),
    ][number]
    write(folder / "tasks", dataset_path="a/b", dataset_kwargs=None)
    file = folder / "tasks" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changed}), encoding="utf-8")
    suite = write_suite(folder, {"facts": {name: metric}})
    options = EvaluationOptions(data={"a/b": str(folder / "tasks")})
    result_or_one_line(lambda: load_tasks(suite, "test", options))


OPTIONS = """until max_gen_toks max_new_tokens max_tokens temperature do_sample top_p top_k min_p repetition_penalty
    min_new_tokens num_beams use_cache skip_special_tokens max_total_tokens"""
option_names = st.sampled_from(OPTIONS.split())


@given(options=st.dictionaries(option_names | st.text(max_size=8), values, max_size=4))
def test_any_decoding_options_are_read_or_refused_by_name(options: dict[str, Any]) -> None:
    found = result_or_one_line(lambda: read_generation_options("t", options))
    assert found is None or (found.max_tokens >= 1 and found.temperature >= 0 and all(found.stop))


@given(config=st.dictionaries(keys | st.just("dataset_kwargs"), values, max_size=4), files=values)
def test_any_splits_and_files_are_checked_without_an_error_of_their_own(config: dict[str, Any], files: Any) -> None:
    result_or_one_line(lambda: check_examples("t", config, ["test"]))
    result_or_one_line(lambda: check_data_files("t", {**config, "dataset_kwargs": {"data_files": files}}))


@given(made=rows, suffix=st.sampled_from([".json", ".jsonl"]), name=st.text("ab/~@. ", max_size=8))
def test_calibration_samples_of_any_rows_are_texts_or_refused(
    tmp_path: Path, made: list[Any], suffix: str, name: str
) -> None:
    file = tmp_path / f"some{suffix}"
    file.write_text(json.dumps(made) if suffix == ".json" else "\n".join(map(json.dumps, made)), encoding="utf-8")
    base = cast(Checkpoint, SimpleNamespace(folder=tmp_path))
    found = result_or_one_line(lambda: read_samples("math", CalibrationSource(data=str(file)), 3, base, {}))
    assert found is None or all(isinstance(sample.prompt + sample.response, str) for sample in found)
    missing = CalibrationSource(data=f"~{name}{suffix}")
    assert result_or_one_line(lambda: read_samples("math", missing, 3, base, {})) is None
