"""Local copies of data sets that nobody would read: most often a misspelt name, and then other data are scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.config import CalibrationSource, Suite
from mergebench_ray.config.fields import DATA_SPLITS
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.tasks.groups import planned_tasks
from mergebench_ray.tasks.local_data import dataset_id
from mergebench_ray.tasks.task_files import task_manager


def check_data_is_used(
    suite: Suite, data: Mapping[str, str], calibration: Iterable[CalibrationSource] = (), option: str = "--data"
) -> None:
    """Check that some task of a suite, of either split and chosen or not, reads each of these data sets.

    Args:
        suite: names the tasks.
        data: data set -> local file or folder, as in `EvaluationOptions.data`.
        calibration: samples that may be read from them too.
        option: where they were given, for the message.

    Raises:
        InputError: naming the data set, and the closest that is read.
    """
    if not data:
        return
    sources = [*suite.calibration.values(), *calibration]
    read: dict[str, None] = dict.fromkeys(source.data for source in sources if not source.is_task)
    unread: InputError | None = None
    for domain, split in itertools.product(suite.scored, DATA_SPLITS):
        try:
            configs = _files(suite, domain, split)
        except InputError as error:  # for those who choose the domain, which may be nobody
            unread = unread or error
            continue
        for config in configs:
            if "class" in config:
                return  # its code may load anything
            if (key := dataset_id(config)) is not None:
                read |= {key: None, str(config["dataset_path"]): None}
            read |= dict.fromkeys(one for one in data if _is_named_in(config.get("custom_dataset"), one))
    for name in data:
        if name not in read:
            hint = nearest(name, read) if read else "its tasks bring data of their own"
            other = f"; a domain of it cannot be read: {unread}" if unread else ""
            raise InputError(f"{option}: no task of suite {suite.name} reads {name!r:.120}; {hint}{other}")


def _files(suite: Suite, domain: str, split: str) -> list[Mapping[str, Any]]:
    manager = task_manager(suite)
    return [task.file(manager, suite) for task in planned_tasks(suite, domain, split)]


def _is_named_in(function: object, data_set: str) -> bool:
    """Whether the file of a function that makes a task's data, as FOLDER/MODULE.FUNCTION, names a data set."""
    try:
        source = Path(f"{str(function).rpartition('.')[0]}.py").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return False
    name = data_set.partition(":")[0]
    return f"'{name}'" in source or f'"{name}"' in source
