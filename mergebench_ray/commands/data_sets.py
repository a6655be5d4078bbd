"""The data sets and judges of a suite: where each would come from, whether it is gated, and whether it is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from mergebench_ray.checkpoints.model_files import remote_files
from mergebench_ray.checkpoints.sources import is_on_hub, locate
from mergebench_ray.config import ModelRef
from mergebench_ray.config.calibration import CalibrationSource
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.judges.judges import judge_settings, judged_tasks
from mergebench_ray.object_storage.address import Address, is_address
from mergebench_ray.tasks.groups import planned_tasks
from mergebench_ray.tasks.local_data import SUFFIXES, LocalSplits, dataset_id, local_source, missing_file
from mergebench_ray.tasks.protocol import data_split
from mergebench_ray.tasks.task_files import task_manager

Source = Literal["local", "cache", "hub", "task"]


@dataclass(frozen=True)
class DataSet:
    """A data set that tasks of a suite ask for, or the model of a judge.

    Attributes:
        id: `owner/name` or `owner/name:config`; the task's name where it brings its own data; a judge's reference.
        tasks: names of the tasks that ask for it.
        splits: the data set's own names of the splits that they ask for; none of a model.
        source: a local file, the hub's cache on this machine, the hub, or the task's own code or files.
        place: path, or address on the hub.
        gated: whether its licence must be accepted on the hub first; None where nobody said.
        problem: why it cannot be had; empty where it is there.
        optional: whether tasks do without it: a judge that nobody asked for, in whose place keywords are counted.
    """

    id: str
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    source: Source
    place: str
    gated: bool | None
    problem: str
    optional: bool = False

    @property
    def there(self) -> bool:
        """Whether it can be read."""
        return not self.problem


def data_sets(
    suite: Suite,
    domains: Iterable[str],
    data: Mapping[str, str],
    calibration: Mapping[str, CalibrationSource],
) -> list[DataSet]:
    """What both splits of domains, and the test split of the forgetting section, would read; in the suite's order.

    Local files are looked for, not read. The hub is asked only for what is neither local nor in its cache, and not at
    all with HF_HUB_OFFLINE=1.

    Args:
        suite: names the tasks.
        domains: its domains, and names of its forgetting section.
        data: data set -> local file or folder, as in `EvaluationOptions.data`.
        calibration: specialist -> its samples, listed after the tasks unless they are a suite's own.

    Raises:
        InputError: if a task has no task file.
    """
    manager = task_manager(suite)
    asked: dict[str, dict[str, dict[str, None]]] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    for domain in domains:
        for split in ("test",) if domain in suite.forgetting else DATA_SPLITS:
            for task in planned_tasks(suite, domain, split):
                config = task.file(manager, suite)
                key = dataset_id(config) or task.name
                configs[key] = config
                found = asked.setdefault(key, {"tasks": {}, "splits": {}})
                found["tasks"][task.name] = None
                if own_split := data_split(config, task.settings, split):
                    found["splits"][own_split] = None
    hub = _Hub()
    found_sets = [
        _data_set(key, configs[key], tuple(one["tasks"]), tuple(one["splits"]), suite, data, hub)
        for key, one in asked.items()
    ]
    for specialist, source in calibration.items():
        if source.is_task:
            continue
        use, file = (f"calibration of {specialist}",), Path(os.path.expanduser(source.data))
        if file.suffix in SUFFIXES:
            problem = "" if os.path.isfile(file) else f"{file}: no such file"
            found_sets.append(DataSet(source.data, use, (source.split,), "local", str(file), False, problem))
        else:
            config = {"dataset_path": source.data.partition("@")[0]}
            found_sets.append(_data_set(source.data, config, use, (source.split,), suite, data, hub))
    return found_sets


def judge_models(suite: Suite, options: EvaluationOptions, domains: Iterable[str]) -> list[DataSet]:
    """The models of the judges that tasks of these domains name, but for judges that are switched off.

    Raises:
        InputError: if a task has no task file, or a judge's settings are wrong.
    """
    hub = _Hub("model")
    found = []
    for name, tasks in judged_tasks(suite, domains, DATA_SPLITS).items():
        judge = judge_settings(name, suite, options)
        if judge is not None:
            use = tuple(f"judge {name} of {task}" for task in tasks)
            found.append(replace(_judge_model(judge, use, hub), optional=name not in options.judges))
    return found


def _judge_model(judge: Judge, use: tuple[str, ...], hub: _Hub) -> DataSet:
    reference = ModelRef.parse(judge.model)
    if not is_on_hub(reference):
        problem = ""
        try:
            if is_address(reference.source):
                remote_files(Address.parse(reference.source), headers_only=True)
            else:
                locate(reference)
        except InputError as error:
            problem = str(error)
        return DataSet(judge.model, use, (), "local", reference.source, judge.gated, problem)
    if (cached := _downloaded("models", reference.hub_id)) is not None:
        return DataSet(judge.model, use, (), "cache", str(cached), judge.gated or None, "")
    problem, gated = hub.problem(reference.hub_id)
    place = f"{constants.ENDPOINT}/{reference.hub_id}"
    return DataSet(judge.model, use, (), "hub", place, judge.gated or gated, problem)


def _data_set(
    key: str,
    config: Mapping[str, Any],
    tasks: tuple[str, ...],
    splits: tuple[str, ...],
    suite: Suite,
    data: Mapping[str, str],
    hub: _Hub,
) -> DataSet:
    path, name = str(config.get("dataset_path")), config.get("dataset_name")
    gated = path in suite.gated_data if suite.gated_data else None
    if dataset_id(config) is None:
        return DataSet(key, tasks, splits, "task", _own_place(config), False, missing_file(key, config) or "")
    if (local := local_source(data, path, name)) is not None:
        return DataSet(key, tasks, splits, "local", str(local), gated, _local_problem(key, name, local, splits))
    if (cached := _cached(path, name)) is not None:
        return DataSet(key, tasks, splits, "cache", str(cached), gated, "")
    problem, said = hub.problem(path)
    return DataSet(
        key, tasks, splits, "hub", f"{constants.ENDPOINT}/datasets/{path}", said if gated is None else gated, problem
    )


def _own_place(config: Mapping[str, Any]) -> str:
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    return ", ".join(map(str, files.values() if isinstance(files, Mapping) else [files])) if files else "its own code"


def _local_problem(key: str, name: str | None, source: Path, splits: tuple[str, ...]) -> str:
    try:
        local = LocalSplits(key, name, source, None)
        for split in splits:
            local.files(split)
    except InputError as error:
        return str(error)
    return ""


def _cached(path: str, name: str | None) -> Path | None:
    """The folder in which a data set lies that was built or downloaded here before."""
    built = Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___") / (name or "default")
    return built if built.is_dir() and os.listdir(built) else _downloaded("datasets", path)


def _downloaded(kind: str, path: str) -> Path | None:
    """The folder in which the hub's client keeps a data set or a model; None where it holds nothing."""
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{path.replace('/', '--')}" / "snapshots"
    return folder if folder.is_dir() and os.listdir(folder) else None


class _Hub:
    """Asks the hub about data sets, or models; after the first that it cannot reach it for, it asks no more."""

    def __init__(self, kind: Literal["dataset", "model"] = "dataset") -> None:
        self._kind = kind
        self._unreachable = "not in the cache, and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        self._known: dict[str, tuple[str, bool | None]] = {}

    def problem(self, path: str) -> tuple[str, bool | None]:
        """Why one cannot be had, empty if it can, and whether it is gated."""
        if path not in self._known:
            self._known[path] = (self._unreachable, None) if self._unreachable else self._ask(path)
        return self._known[path]

    def _ask(self, path: str) -> tuple[str, bool | None]:
        api = HfApi()
        try:
            gated = bool(api.repo_info(path, repo_type=self._kind, timeout=10).gated)
            api.auth_check(path, repo_type=self._kind)
        except GatedRepoError:
            return "its licence is not accepted for this HF_TOKEN", True
        except RepositoryNotFoundError:
            return f"the hub has no such {self._kind}, or not for this HF_TOKEN", None
        except Exception as error:  # of whichever HTTP library the hub's client uses
            self._unreachable = f"the hub cannot be reached ({type(error).__name__})"
            return self._unreachable, None
        return "", gated
