"""What makes two items the same, whatever run or split they are in: asked alike, and graded alike."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mergebench_ray.installed_code import sources_below, sources_of
from mergebench_ray.tasks.scored_task import ScoredTask, described_item

_SETTINGS = (
    *("output_type", "generation_kwargs", "repeats", "filter_list", "metric_list", "metadata"),
    *("doc_to_target", "doc_to_choice", "process_results", "target_delimiter"),
)
"""Of a task file: how an answer is got and graded, which neither prompts nor documents show."""


def item_digests(tasks: Iterable[ScoredTask]) -> list[str]:
    """SHA-256 of each item: what is asked, what it is graded against, and how, task by task.

    Unlike the digest of all items it knows the source of the tasks' own Python functions: items with one digest have
    one score with one model's weights.
    """
    digests = []
    for task in tasks:
        shared = _how(task)
        for item in task.items:
            row = (*described_item(task, item, task.counted), shared)
            digests.append(hashlib.sha256(json.dumps(row).encode()).hexdigest())
    return digests


def _how(task: ScoredTask) -> str:
    """Digest of a task's settings, of the sources below its folder, and of those of its functions elsewhere."""
    config = vars(task.task.config)
    settings = {name: _plain(config.get(name)) for name in _SETTINGS}
    functions = [*_functions(config), type(task.task), task.batch_scorer, task.judged and task.judged.scorer]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(sources_below([] if task.file is None else [task.file.parent]).encode())
    digest.update(sources_of(one for one in functions if one is not None).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """A setting as JSON; functions by their names, since their addresses change from process to process."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _functions(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _functions(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _functions(one)
    elif isinstance(value, functools.partial):
        yield value.func
    elif callable(value):
        yield value
