from __future__ import annotations

import functools

import pytest

from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS, Split
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import grade, task_estimate
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest

DOMAINS = ["coding", "instruction", "math", "multilingual", "safety"]


@functools.cache
def loaded(split: Split) -> dict[str, ScoredTask]:
    """The built-in suite's tasks by domain; running their programs is allowed."""
    tasks = load_tasks(Suite.load("smollm2-mini"), split, EvaluationOptions(allow_code_execution=True))
    return {task.domain: task for task in tasks}


@pytest.mark.parametrize("domain", DOMAINS)
def test_gold_answers_score_everything_and_empty_ones_nothing(domain: str) -> None:
    task = loaded("validation")[domain]
    gold = grade(task, [[[item.doc["gold"]]] for item in task.items])
    nothing = grade(task, [[[""]] for _ in task.items])
    for values, expected in ((gold, 1.0), (nothing, 0.0)):
        estimate, count = task_estimate(task, values)
        assert (estimate.value, estimate.standard_error, count) == (expected, 0.0, len(task.items))


def test_every_split_has_its_items_and_no_prompt_is_in_two() -> None:
    sizes = {split: {domain: len(task.items) for domain, task in loaded(split).items()} for split in DATA_SPLITS}
    assert set(sizes["validation"]) == set(sizes["test"]) == set(DOMAINS)
    assert min(sizes["validation"].values()) >= 64
    assert min(sizes["test"].values()) >= 128
    for domain in DOMAINS:
        prompts = [{item.instances[0].args[0] for item in loaded(split)[domain].items} for split in DATA_SPLITS]
        assert not prompts[0] & prompts[1]
        ids = [item.id for split in DATA_SPLITS for item in loaded(split)[domain].items]
        assert len(set(ids)) == len(ids)


def test_items_are_the_same_in_every_run() -> None:
    again = load_tasks(
        Suite.load("smollm2-mini"), "validation", EvaluationOptions(allow_code_execution=True, validation_items=5)
    )
    for task in again:
        assert list(task.items) == list(loaded("validation")[task.domain].items[:5])
    assert items_digest(again) != items_digest(loaded("validation").values())


def test_generated_programs_run_only_where_the_sweep_allows_it() -> None:
    suite = Suite.load("smollm2-mini")
    with pytest.raises(InputError, match="mini_coding runs generated programs; set evaluation"):
        load_tasks(suite, "validation", EvaluationOptions())
    without = load_tasks(suite, "validation", EvaluationOptions(domains=["math", "safety"], validation_items=1))
    assert [task.domain for task in without] == ["math", "safety"]
