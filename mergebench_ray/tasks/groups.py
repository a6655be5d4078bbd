"""lm-eval's groups and tags: the tasks that they stand for, what they change of them, and how these count together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks import TaskManager

from mergebench_ray.config.suite import Suite, TaskSettings
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.tasks.metrics import lacks_metric
from mergebench_ray.tasks.task_files import find_task_file, no_task, task_manager

_GROUP_KEYS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"})
_SHOWN = 5


@dataclass(frozen=True)
class PlannedTask:
    """A task that a suite asks: one that it names, or one of a group or tag that it names.

    Attributes:
        name: of the task.
        settings: the suite's.
        changed: what groups change of its file.
        group: the group or tag that the suite names in its place; empty where it names the task itself.
        pooled: whether it counts as a part of the group, all parts by their numbers of items, and not by itself.
        notes: what is to be said of the group, a line each.
    """

    name: str
    settings: TaskSettings
    changed: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    pooled: bool = False
    notes: tuple[str, ...] = ()

    def file(self, manager: TaskManager, suite: Suite) -> Mapping[str, Any]:
        """Its task file as it stands, functions unresolved, with what groups change.

        Raises:
            InputError: as `find_task_file`.
        """
        return find_task_file(manager, suite, self.name, self.changed)


def planned_tasks(suite: Suite, domain: str, split: str) -> list[PlannedTask]:
    """The tasks of a domain, with those of groups and tags in the place of these.

    As in lm-eval, a group has a score where its `aggregate_metric_list` has the metric: by size, if it does not say
    otherwise, over its tasks that have the metric. The tasks of a tag, and of other groups, count by themselves.

    Args:
        suite: names the tasks.
        domain: of the suite.
        split: that is asked.

    Raises:
        InputError: a name that lm-eval does not know, a task that is there twice, or a group whose score cannot be
            counted as its file says.
    """
    manager = task_manager(suite)
    named = suite.scored[domain].tasks_of(split)
    planned: dict[str, PlannedTask] = {}
    for name, settings in named.items():
        if name in manager.all_subtasks:
            found = [PlannedTask(name, settings)]
        elif name in manager.all_groups:
            found = _of_group(manager, suite, name, settings)
            if len(named) > 1 and not found[0].pooled and _entry(manager, name, settings) is not None:
                raise InputError(
                    f"domain {domain!r}: group {name} is the plain mean of its tasks, which the mean of a domain with "
                    "other tasks is not; give it a domain of its own"
                )
        elif name in manager.all_tags:
            found = _of_tag(manager, name, settings)
        else:
            raise no_task(manager, suite, name)
        for task in found:
            if (other := planned.get(task.name)) is not None:
                raise InputError(
                    f"domain {domain!r}: task {task.name} is there twice, {_place(other)} and {_place(task)}; "
                    "leave one out"
                )
            planned[task.name] = task
    return list(planned.values())


def _place(task: PlannedTask) -> str:
    return f"in {task.group}" if task.group else "by itself"


def _of_tag(manager: TaskManager, name: str, settings: TaskSettings) -> list[PlannedTask]:
    tasks = sorted(manager.task_index[name].tags)
    note = f"tag {name} stands for {listed(tasks)}, which count by themselves"
    return [PlannedTask(task, settings, group=name, notes=(note,)) for task in tasks]


def _of_group(manager: TaskManager, suite: Suite, name: str, settings: TaskSettings) -> list[PlannedTask]:
    members = dict(_members(manager, suite, name, manager.task_index[name].cfg or {}, {}))
    metric, _, filter_name = settings.metric.partition(",")
    entry = _entry(manager, name, settings)
    if entry is None:
        note = (
            f"group {name}: lm-eval gives it no score by {settings.metric}, so that {listed(list(members))}, count by "
            "themselves"
        )
        return [PlannedTask(one, settings, changed, name, notes=(note,)) for one, changed in members.items()]
    files = {one: find_task_file(manager, suite, one, changed) for one, changed in members.items()}
    lacking = [one for one, file in files.items() if lacks_metric(one, file, metric)]
    kept = {one: changed for one, changed in members.items() if one not in lacking}
    if not kept:
        raise InputError(f"group {name}: none of its {len(members)} tasks has a metric {metric!r}; count another")
    notes = (f"group {name}: left out of it, as in lm-eval: {listed(lacking)}, without {metric}",) if lacking else ()
    if not filter_name and entry.filter_list:
        settings = settings.model_copy(update={"metric": f"{metric},{entry.filter_list[0]}"})
    pooled = bool(entry.weight_by_size)
    return [PlannedTask(one, settings, changed, name, pooled, notes) for one, changed in kept.items()]


def _entry(manager: TaskManager, name: str, settings: TaskSettings) -> AggMetricConfig | None:
    """How a group's score by a metric is made; None where lm-eval makes none."""
    metric, _, filter_name = settings.metric.partition(",")
    listed = (manager.task_index[name].cfg or {}).get("aggregate_metric_list") or []
    try:
        entries = [AggMetricConfig(**one) for one in ([listed] if isinstance(listed, Mapping) else listed)]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"group {name}: aggregate_metric_list: lm-eval cannot read it ({one_line(error)}); mend it"
        ) from error
    for one in entries:
        if one.metric == metric and (not filter_name or one.filter_list is None or filter_name in one.filter_list):
            if one.aggregation != "mean":
                raise InputError(f"group {name}: its score by {metric} is no mean; name its tasks instead")
            return one
    return None


def _members(
    manager: TaskManager, suite: Suite, group: str, config: Mapping[str, Any], changed: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Tasks of a group, those of its groups and tags included, each with what is changed of its file.

    What a group says beside its own keys holds for all of its tasks; what is said where it is named comes before that,
    and what a group says where it names a task before all else: as lm-eval lays them over each other.
    """
    changed = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **changed}
    listed = config.get("task")
    for one in [listed] if isinstance(listed, str) else listed or []:
        name, own = _entry_of(group, one)
        if name not in manager.task_index:
            if isinstance(one, str):
                raise InputError(f"group {group}: {no_task(manager, suite, name)}")
            if "group" not in one:
                raise InputError(f"group {group}: makes a task {name} of its own; write it into a task file")
            yield from _members(manager, suite, f"{group}::{name}", one, changed)
            continue
        entry, merged = manager.task_index[name], {**changed, **own}
        if name in manager.all_groups:
            yield from _members(manager, suite, name, entry.cfg or {}, merged)
            continue
        if function := next((key for key, value in merged.items() if _holds_function(value)), None):
            raise InputError(
                f"group {group}: gives its tasks another {function}, with functions; name its tasks instead"
            )
        for task in sorted(entry.tags) if name in manager.all_tags else [name]:
            yield task, merged


def _entry_of(group: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """What an entry of a group's tasks names, and what it changes of it."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and isinstance(name := entry.get("group", entry.get("task")), str):
        return name, {key: value for key, value in entry.items() if key not in ("task", "group")}
    raise InputError(f"group {group}: an entry of its tasks names none: {entry!r:.80}; name its tasks instead")


def _holds_function(value: Any) -> bool:
    """Whether a setting, functions unresolved, names one: lm-eval then has the path of its file, a dot and its name."""
    if isinstance(value, Mapping):
        return any(map(_holds_function, value.values()))
    if isinstance(value, list):
        return any(map(_holds_function, value))
    return isinstance(value, str) and os.path.isabs(value) and os.path.isfile(f"{value.rpartition('.')[0]}.py")


def lm_eval_groups(suite: Suite, tasks: Mapping[str, Task]) -> dict[str, Group]:
    """The groups that a suite names, and those in them, as lm-eval's own: by name, each with what it is made of.

    Args:
        suite: names them.
        tasks: by name, those that are asked.
    """
    manager = task_manager(suite)
    found: dict[str, Group] = {}
    for domain in suite.scored.values():
        for name in {**domain.tasks, **(domain.validation_tasks or {})}:
            if name in manager.all_groups:
                _add_group(manager, name, manager.task_index[name].cfg or {}, tasks, found)
    return found


def _add_group(
    manager: TaskManager, name: str, config: Mapping[str, Any], tasks: Mapping[str, Task], found: dict[str, Group]
) -> Group:
    known = {key: value for key, value in config.items() if key in _GROUP_KEYS - {"tag"}}
    group = found[name] = Group.from_config({**known, "group": name})
    listed = config.get("task")
    for one in [listed] if isinstance(listed, str) else listed or []:
        member, _ = _entry_of(name, one)
        if member in manager.all_groups:
            group.add(_add_group(manager, member, manager.task_index[member].cfg or {}, tasks, found))
        elif member not in manager.task_index:
            group.add(_add_group(manager, f"{name}::{member}", cast("Mapping[str, Any]", one), tasks, found))
        else:
            inside = sorted(manager.task_index[member].tags) if member in manager.all_tags else [member]
            for task in inside:
                if task in tasks:
                    group.add(tasks[task])
    return group


def listed(names: Sequence[str]) -> str:
    """The number of some tasks, and the first of their names."""
    shown = ", ".join(names[:_SHOWN])
    number = f"{len(names)} task{'s' * (len(names) != 1)}"
    return f"{number}, {shown}{', ...' if len(names) > _SHOWN else ''}"
