"""From graded items to scores of domains and their averages, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem, GradedShare, Spent
from mergebench_ray.evaluation.grading import item_score
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.scores import ItemRow, Scores, average_score
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest
from task_files import capital_items, write_choice_task, write_generation_task, write_lines, write_task
from tiny_models import tiny_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("model") / "tiny"), trust_remote_code=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    return tmp_path


def loaded(folder: Path, domains: dict[str, dict[str, Any]]) -> list[ScoredTask]:
    file = folder / "suite.yaml"
    content = {
        "name": "s",
        "tasks_folder": "tasks",
        "domains": {name: {"tasks": tasks} for name, tasks in domains.items()},
    }
    file.write_text(to_yaml(content))
    return load_tasks(Suite.load(str(file)), "test", EvaluationOptions())


def combined(tasks: Sequence[ScoredTask], tokenizer: Any, value: Callable[[int, int], Any]) -> Scores:
    """Scores where item `place` of task `number` has this value of its metric."""

    def graded(task: ScoredTask, given: Any, place: int) -> GradedItem:
        item = task.items[place]
        row = ItemRow(
            domain=task.domain,
            task=task.name,
            item=item.id,
            cluster=item.cluster,
            prompt_digest=item.prompt_digest,
            answer="",
            score=item_score(task, given),
            judgement="",
        )
        return GradedItem(given, row, None)

    items = [
        graded(task, value(number, place), place)
        for number, task in enumerate(tasks)
        for place in range(len(task.items))
    ]
    share = GradedShare(dict(enumerate(items)), "v", Spent())
    return PreparedSplit("test", tasks, tokenizer, 256).combine([share])


def test_translations_of_a_question_are_one_cluster_of_their_domain(folder: Path, tokenizer: Any) -> None:
    for language in ("fr", "de"):
        items = [one | {"country": f"{one['country']} ({language})"} for one in capital_items(0, 12)]
        write_lines(folder / f"{language}.jsonl", items)
        write_choice_task(
            folder / "tasks",
            language,
            dataset_kwargs={"data_files": {"test": str(folder / f"{language}.jsonl")}},
            training_split=None,
            validation_split=None,
        )
    values = np.random.default_rng(0).integers(0, 2, 12).astype(float)

    def right(_number: int, place: int) -> float:
        return float(values[place])

    by_item, by_question = (
        combined(loaded(folder, {"facts": dict.fromkeys(("fr", "de"), how)}), tokenizer, right)
        for how in ({"metric": "acc"}, {"metric": "acc", "cluster_by": "id"})
    )
    one_language = np.std(values, ddof=1) / np.sqrt(12)
    assert by_item.domains["facts"].standard_error == pytest.approx(one_language / np.sqrt(2))
    assert by_question.domains["facts"].standard_error == pytest.approx(one_language)
    assert by_question.domains["facts"].score == by_item.domains["facts"].score == pytest.approx(values.mean())
    assert len({row["cluster"] for row in by_question.items}) == 12
    assert len({row["cluster"] for row in by_item.items}) == 24


def test_a_task_in_two_domains_is_kept_in_both_with_what_each_counts(folder: Path, tokenizer: Any) -> None:
    write_choice_task(folder / "tasks", "choice")
    write_generation_task(folder / "tasks", "text")
    tasks = loaded(folder, {"a": {"choice": "acc"}, "b": {"choice": "acc_norm", "text": "exact_match"}})
    scores = combined(tasks, tokenizer, lambda number, place: float(place % 2 == 0 or number == 1))
    assert {name: task.score for name, task in scores.tasks.items()} == {"a/choice": 0.5, "b/choice": 1.0, "text": 0.5}
    assert scores.domains["a"].counted == {"choice": "acc"}
    assert scores.domains["b"].counted == {"choice": "acc_norm", "text": "exact_match"}
    assert [row["domain"] for row in scores.items].count("a") == 6
    same = combined(
        loaded(folder, {"a": {"choice": "acc"}, "b": {"choice": "acc"}}), tokenizer, lambda _, place: place % 2
    )
    error = same.domains["a"].standard_error
    assert average_score(same.domains, same.influences)[1] == pytest.approx(error)


def test_what_counts_of_an_item_and_of_a_domain_goes_the_same_way(folder: Path, tokenizer: Any) -> None:
    write_choice_task(folder / "tasks", "choice")
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    write_task(
        folder / "tasks", "likely", output_type="loglikelihood", doc_to_target=" {{city}}", metric_list=[perplexity]
    )
    tasks = loaded(folder, {"a": {"choice": {"metric": "acc", "one_minus": True}}, "b": {"likely": "perplexity"}})
    scores = combined(tasks, tokenizer, lambda number, place: float(place < 2) if number == 0 else -2.0)
    assert scores.domains["a"].score == pytest.approx(4 / 6)
    assert [row["score"] for row in scores.items][:6] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert scores.domains["a"].higher_is_better
    assert scores.domains["b"].score == pytest.approx(np.exp(2))
    assert not scores.domains["b"].higher_is_better
    assert scores.tasks["likely"].label == "perplexity, lower is better"


def test_another_direction_is_another_measure(folder: Path) -> None:
    write_choice_task(folder / "tasks", "choice")
    digests = {
        items_digest(loaded(folder, {"a": {"choice": how}}))
        for how in (
            {"metric": "acc"},
            {"metric": "acc", "one_minus": True},
            {"metric": "acc", "higher_is_better": False},
        )
    }
    assert len(digests) == 3


def test_a_value_that_no_mean_can_take_is_one_line(folder: Path, tokenizer: Any) -> None:
    write_choice_task(folder / "tasks", "choice")
    tasks = loaded(folder, {"a": {"choice": "acc"}})
    with pytest.raises(InputError, match="task choice: the aggregation of its metric acc at item capital-7 failed"):
        combined(tasks, tokenizer, lambda _, place: "right" if place == 1 else 1.0)
