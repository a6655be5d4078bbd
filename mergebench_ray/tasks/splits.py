"""Tasks with one split alone: as in lm-eval its items are those of test, and a search needs others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lm_eval.api.task import Task

from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.groups import PlannedTask, listed, planned_tasks
from mergebench_ray.tasks.protocol import data_split
from mergebench_ray.tasks.scored_task import ScoredTask
from mergebench_ray.tasks.task_files import task_manager


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


def check_splits_apart(suite: Suite, domains: Iterable[str]) -> None:
    """Refuse tasks of which a search would see the items that it is tested on.

    Args:
        suite: names the tasks.
        domains: of the suite.

    Raises:
        InputError: naming the task and the split.
    """
    manager = task_manager(suite)
    for domain in domains:
        tested = {task.name for task in planned_tasks(suite, domain, "test")}
        for task in planned_tasks(suite, domain, "validation"):
            config, settings = task.file(manager, suite), task.settings
            split = data_split(config, settings, "test")
            if task.name not in tested or settings.held_out_by or split is None:
                continue
            if split == data_split(config, settings, "validation"):
                training = config.get("training_split")
                other = f" (it has {training})" if training else ""
                raise InputError(
                    f"task {task.name}: search and test would have the same items, those of its split {split!r}; let "
                    "them divide it with held_out_by: FIELD in the suite, or name another split of its data with "
                    f"validation_split{other}"
                )
