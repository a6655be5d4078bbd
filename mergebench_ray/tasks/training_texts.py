"""The training split of a suite's task as plain texts, for calibration."""

from __future__ import annotations

from itertools import islice

from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.data_errors import data_source, explain_data_errors
from mergebench_ray.tasks.local_data import check_data_files, dataset_id
from mergebench_ray.tasks.task_files import find_task_file, quiet_lm_eval, task_manager


def training_texts(suite: Suite, task: str, limit: int) -> list[tuple[str, str]]:
    """The first documents of a task's training split: what is asked, and the right answer.

    Raises:
        InputError: no such task, or none of its items are for training.
    """
    manager = task_manager(suite)
    if task not in manager.all_subtasks:
        raise InputError(f"calibration data {suite.name}:{task}: suite {suite.name} has no such task; check the name")
    config = find_task_file(manager, suite, task)
    check_data_files(task, config)
    source = data_source(config, config.get("training_split"))
    with explain_data_errors(task, source, dataset_id(config)), quiet_lm_eval():
        made = manager.load(task)["tasks"][task]
        if not made.has_training_docs():
            raise InputError(f"calibration data {suite.name}:{task}: that task has no training split; name another")
        documents = islice(made.training_docs(), limit)
        return [(str(made.doc_to_text(document)), str(made.doc_to_target(document))) for document in documents]
