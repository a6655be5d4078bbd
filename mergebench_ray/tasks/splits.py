"""Tasks with one split alone: as in lm-eval its items are those of test, and a search needs others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lm_eval.api.task import Task

from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.groups import PlannedTask, listed, planned_tasks
from mergebench_ray.tasks.protocol import data_split
from mergebench_ray.tasks.scored_task import ScoredTask
from mergebench_ray.tasks.task_files import task_manager

_DATA = ("dataset_path", "dataset_name", "dataset_kwargs")


def with_note(tasks: Sequence[ScoredTask], planned: Sequence[PlannedTask], suite: Suite) -> list[ScoredTask]:
    """The tasks of a test split; the first of those without such a split says where the items of all of them are from.

    Args:
        tasks: of the split.
        planned: the same, as the suite names them.
        suite: names them.
    """
    without = [place for place, one in enumerate(planned) if _has_no_test_split(tasks[place].task, one, suite)]
    divided = [planned[place].name for place in without if planned[place].settings.held_out_by]
    whole = [planned[place].name for place in without if not planned[place].settings.held_out_by]
    notes = []
    if whole:
        notes.append(f"no test split, so that test is their validation split, as in lm-eval: {listed(whole)}")
    if divided:
        notes.append(f"no test split, so that search and test divide their validation split: {listed(divided)}")
    return [
        replace(task, notes=(*notes, *task.notes)) if [place] == without[:1] else task
        for place, task in enumerate(tasks)
    ]


def _has_no_test_split(task: Task, planned: PlannedTask, suite: Suite) -> bool:
    """Whether lm-eval asks a task the items of its validation split."""
    config = planned.file(task_manager(suite), suite)
    if "class" in config:
        return not task.has_test_docs()
    return not (planned.settings.test_split or config.get("test_split"))


def check_splits_apart(suite: Suite, domains: Sequence[str]) -> None:
    """Refuse tasks of which a search would see the items that they are tested on, in its domain or another.

    Args:
        suite: names the tasks.
        domains: of the suite.

    Raises:
        InputError: naming the task and the split.
    """
    manager = task_manager(suite)
    for searched, tested in _not_divided(suite, domains):
        config, other = searched.file(manager, suite), tested.file(manager, suite)
        split = data_split(config, searched.settings, "validation")
        if split is None or any(config.get(key) != other.get(key) for key in _DATA):
            continue
        if split == data_split(other, tested.settings, "test"):
            training = config.get("training_split")
            has = f" (it has {training})" if training else ""
            raise InputError(
                f"task {searched.name}: search and test would have the same items, those of its split {split!r}; let "
                "them divide it with held_out_by: FIELD in the suite, or name another split of its data with "
                f"validation_split{has}"
            )


def check_classes_apart(suite: Suite, domains: Sequence[str], tested: Sequence[ScoredTask]) -> None:
    """As `check_splits_apart`, of tasks that are classes: their files name no splits, the loaded tasks know.

    Args:
        suite: names the tasks.
        domains: of the suite.
        tested: the tasks of these domains, as they are loaded for test.

    Raises:
        InputError: naming the task.
    """
    manager = task_manager(suite)
    without = {task.name for task in tested if not task.task.has_test_docs()}
    for searched, _ in _not_divided(suite, domains):
        if searched.name in without and "class" in searched.file(manager, suite):
            raise InputError(
                f"task {searched.name}: search and test would have the same items, since it has a validation split "
                "alone; let them divide it with held_out_by: FIELD in the suite, or leave it out"
            )


def _not_divided(suite: Suite, domains: Sequence[str]) -> Iterator[tuple[PlannedTask, PlannedTask]]:
    """Each task of a search beside the same task where it is tested, unless both divide its items by one field."""
    tested: defaultdict[str, list[PlannedTask]] = defaultdict(list)
    for domain in domains:
        for task in planned_tasks(suite, domain, "test"):
            tested[task.name].append(task)
    for domain in domains:
        for task in planned_tasks(suite, domain, "validation"):
            field = task.settings.held_out_by
            yield from ((task, one) for one in tested[task.name] if not field or field != one.settings.held_out_by)
