"""Validation items that the search does not see: how many, which, and none that depends on one it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mergebench_ray.config.evaluation import EvaluationOptions, SearchEvaluationOptions
from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.held_back import hold_back
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import Item, ScoredTask
from task_files import write_generation_task, write_suite


@pytest.fixture
def task(tmp_path: Path) -> ScoredTask:
    """Of twelve items, which depend on no other."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_generation_task(folder)
    suite = write_suite(tmp_path, {"facts": {"capital_text": "exact_match"}})
    (loaded,) = load_tasks(suite, "validation", EvaluationOptions())
    return with_clusters(loaded, [str(number) for number in range(12)])


def with_clusters(task: ScoredTask, clusters: list[str]) -> ScoredTask:
    """One item for each, in their order."""
    items = [Item(str(place), {}, (), str(place), cluster) for place, cluster in enumerate(clusters)]
    return replace(task, items=tuple(items))


def ids(tasks: list[ScoredTask]) -> list[list[str]]:
    return [[item.id for item in task.items] for task in tasks]


@pytest.mark.parametrize(
    ("searched", "held", "sizes"),
    [
        (None, None, (8, 4)),
        (None, 5, (7, 5)),
        (None, 50, (1, 11)),
        (6, None, (6, 3)),
        (7, None, (7, 4)),
        (3, 2, (3, 2)),
        (16, None, (8, 4)),
        (100, 1, (11, 1)),
    ],
)
def test_a_third_is_held_back_unless_other_numbers_are_given(
    task: ScoredTask, searched: int | None, held: int | None, sizes: tuple[int, int]
) -> None:
    options = SearchEvaluationOptions(validation_items=searched, final_items=held)
    search, final = (ids(part)[0] for part in hold_back([task], options))
    assert (len(search), len(final)) == sizes
    assert [*search, *final] == [str(place) for place in range(sum(sizes))]


def test_of_two_items_one_is_held_back(task: ScoredTask) -> None:
    assert ids(hold_back([with_clusters(task, ["a", "b"])], SearchEvaluationOptions())[1]) == [["1"]]


def test_what_shares_a_cluster_is_on_one_side_in_all_tasks_whatever_their_sizes(task: ScoredTask) -> None:
    many = with_clusters(task, [str(number) for number in range(100)])
    few = with_clusters(task, [str(number) for number in range(60)])
    passages = with_clusters(task, [f"passage {number // 10}" for number in range(90)])
    search, final = hold_back([many, few, passages], SearchEvaluationOptions())
    clusters = [[{item.cluster for item in one.items} for one in part] for part in (search, final)]
    assert not set.union(*clusters[0]) & set.union(*clusters[1])
    assert [len(one.items) for one in search] == [67, 40, 60]
    assert all(len(one.items) >= least for one, least in zip(final, (25, 15, 20), strict=True))
    assert [item.id for item in search[0].items] == sorted((item.id for item in search[0].items), key=int)


def test_a_task_of_which_nothing_can_be_held_back_is_named(task: ScoredTask) -> None:
    with pytest.raises(InputError, match=r"task capital_text: of its 1 validation items none .*final_items: 0"):
        hold_back([with_clusters(task, ["a"])], SearchEvaluationOptions())


def test_a_split_is_loaded_without_the_items_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_generation_task(folder)
    suite: Suite = write_suite(tmp_path, {"facts": {"capital_text": "exact_match"}})
    whole = ids(load_tasks(suite, "validation", EvaluationOptions()))[0]
    options = SearchEvaluationOptions()
    search, final, test = (ids(load_tasks(suite, split, options))[0] for split in options.splits)
    assert [*search, *final] == whole
    assert len(search) > len(final) > 0
    assert not set(test) & set(whole)
