"""Any suite file gives a suite or one line; any answer of a judge gives a verdict or none."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.suite import built_in_suites
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import ABSENT, grade, item_score, task_estimate
from mergebench_ray.judges.judges import find_judges
from mergebench_ray.judges.parsers import PARSERS, read_answer
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask
from task_files import write_choice_task, write_generation_task, write_task

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["", "acc", "acc,none", "exact_match", "test", "id", "country", "~nobody/x", "../x", "/dev/null"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONTENTS = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in built_in_suites().items()}
SETTINGS = {
    "metric": ["acc", "acc_norm", "f1", "exact_match", "perplexity", "acc,none", "exact_match,whole", "other", ","],
    "one_minus": [True, False],
    "higher_is_better": [True, False, None],
    "without_judge": ["acc", None],
    "num_fewshot": [0, 1, 2, 50],
    "test_split": ["test", "validation", "train", "other", None],
    "validation_split": ["test", "validation", "other", None],
    "held_out_by": ["country", "id", "gold", "choices", "other", None],
    "cluster_by": ["country", ["id", "gold"], [], ["other"], None],
    "try_grading": [True, False],
    "decoding": [{}, {"temperature": 0.5}, {"max_answer_tokens": 4}, {"samples": 2}, {"max_total_tokens": 2}],
}


def one_line(error: InputError) -> None:
    assert str(error)
    assert "\n" not in str(error)


def paths(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in nested mappings and lists something stands."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, value in inside for found in paths(value, (*path, key)))]


@st.composite
def changed_suites(draw: st.DrawFn) -> dict[str, Any]:
    """A built-in suite in which a few values, or keys, are others."""
    content = copy.deepcopy(CONTENTS[draw(st.sampled_from(sorted(CONTENTS)))])
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(content)[1:]))
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        if draw(st.booleans()):
            owner[path[-1]] = draw(VALUES)
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=8))] = owner.pop(path[-1])
    return content


def load_text(text: bytes) -> Suite | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suite.yaml"
        file.write_bytes(text)
        try:
            return Suite.load(str(file))
        except InputError as error:
            one_line(error)
            return None
        finally:
            assert [path.name for path in Path(folder).iterdir()] == ["suite.yaml"]


@given(changed_suites())
def test_a_changed_suite_file_is_read_or_refused(content: dict[str, Any]) -> None:
    load_text(yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(VALUES)
def test_any_yaml_as_a_suite_file_is_read_or_refused(content: Any) -> None:
    load_text(yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_suite_file_are_read_or_refused(content: bytes) -> None:
    load_text(content)


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "tasks"
    folder.mkdir()
    write_choice_task(folder, "choice")
    write_generation_task(folder, "text")
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    write_task(folder, "likely", output_type="loglikelihood", doc_to_target=" {{city}}", metric_list=[perplexity])
    write_generation_task(folder, "judged", metadata={"judge": "guard", "judged_field": "country"})
    return folder


@given(
    tasks=st.dictionaries(
        st.sampled_from(["choice", "text", "likely", "judged", "absent"]),
        st.fixed_dictionaries(
            {"metric": st.sampled_from(SETTINGS["metric"])},
            optional={key: st.sampled_from(values) for key, values in SETTINGS.items() if key != "metric"},
        ),
        min_size=1,
        max_size=2,
    ),
    split=st.sampled_from(["validation", "test"]),
    judges=st.sampled_from([{}, {"guard": None}, {"other": None}, {"guard": {"model": "./absent"}}]),
)
def test_any_settings_of_tasks_give_items_that_can_be_graded_or_one_line(
    tasks_folder: Path, tasks: dict[str, Any], split: Any, judges: dict[str, Any]
) -> None:
    file = tasks_folder.parent / "suite.yaml"
    content = {"name": "s", "tasks_folder": "tasks", "domains": {"a": {"tasks": tasks}}, "max_model_len": 64}
    file.write_text(yaml.safe_dump(content))
    options = EvaluationOptions(judges=judges)
    try:
        suite = Suite.load(str(file))
        find_judges(suite, options, [split])
        loaded = load_tasks(suite, split, options)
        for task in loaded:
            made_up = "A sentence." if task.task.OUTPUT_TYPE == "generate_until" else (-1.0, False)
            answers = [[[made_up] * (one.repeats or 1) for one in item.instances] for item in task.items]
            task_estimate(task, grade(task, answers))
    except InputError as error:
        one_line(error)


@pytest.fixture(scope="module")
def graded_tasks(tasks_folder: Path) -> list[ScoredTask]:
    """With a mean, a mean taken from 1, and an aggregation of its own."""
    file = tasks_folder.parent / "graded.yaml"
    domains = {"a": {"choice": "acc"}, "b": {"text": {"metric": "exact_match", "one_minus": True}}}
    domains["c"] = {"likely": {"metric": "perplexity", "cluster_by": "gold"}}
    content = {"name": "s", "tasks_folder": "tasks", "domains": {name: {"tasks": one} for name, one in domains.items()}}
    file.write_text(yaml.safe_dump(content))
    return load_tasks(Suite.load(str(file)), "test", EvaluationOptions())


@given(values=st.lists(VALUES | st.floats(0, 1) | st.just(ABSENT), min_size=6, max_size=6))
def test_any_values_of_metrics_give_an_estimate_or_one_line(graded_tasks: list[ScoredTask], values: list[Any]) -> None:
    for task in graded_tasks:
        rows = [item_score(task, value) for value in values]
        assert all(row is None or isinstance(row, float) for row in rows)
        try:
            estimate, count = task_estimate(task, values)
        except InputError as error:
            one_line(error)
        else:
            assert 0 < count <= 6
            assert isinstance(estimate.value, float)
            assert not estimate.standard_error < 0


@pytest.mark.parametrize("parser", sorted(PARSERS))
@given(
    answer=st.text()
    | st.lists(
        st.sampled_from(
            ["Harmful request: ", "response refusal:", "HARMFUL RESPONSE : ", "yes", "no", "n/a", "\n", " ", "\x85"]
        )
    ).map("".join)
)
def test_any_answer_of_a_judge_is_a_verdict_or_none(parser: str, answer: str) -> None:
    verdict = read_answer(PARSERS[parser], answer, "judge")
    assert verdict is None or set(verdict) == {"harmful_request", "refusal", "harmful_response"}
