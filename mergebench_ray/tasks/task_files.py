"""Task files: lm-eval's own and a suite's, found, loaded with some keys replaced, and the functions beside them."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import lm_eval.tasks
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError, nearest, one_line

Verdict = Mapping[str, bool | None]
"""What a judge says of an answer: question -> truth, None for a question that does not apply."""
BatchScorer = Callable[[list[dict[str, Any]], list[list[Any]]], list[Mapping[str, Any]]]
FILE_FORMATS = frozenset({"json", "csv", "parquet", "text", "arrow"})
"""What a task file names as its data set where it brings its own files."""
_MAPPINGS = frozenset({"dataset_kwargs", "fewshot_config", "generation_kwargs", "metadata"})
VerdictScorer = Callable[[list[dict[str, Any]], list[Verdict | None]], list[Mapping[str, Any]]]


def task_manager(suite: Suite) -> TaskManager:
    """lm-eval's index of the task files that a suite may use; kept, since reading lm-eval's thousands takes seconds.

    Raises:
        InputError: if a folder of task files is not there.
    """
    own = suite.tasks_paths
    if not own and not suite.lm_eval_folders:
        return _task_manager(None)
    shipped = Path(lm_eval.tasks.__file__).parent
    folders = [*(shipped / folder for folder in suite.lm_eval_folders), *own]
    for folder in folders:
        if not folder.is_dir():
            key = "tasks_folder" if folder in own else "lm_eval_folders"
            raise InputError(f"{key} {folder}: no such folder; check the suite file")
    return _task_manager(tuple(folders))


@functools.cache
def _task_manager(folders: tuple[Path, ...] | None) -> TaskManager:
    if folders is None:
        return TaskManager()
    try:
        return TaskManager(include_path=list(folders), include_defaults=False)
    except Exception as error:  # lm-eval sorts what it has read into groups and tags without a look at its types
        where = ", ".join(map(str, folders))
        raise InputError(
            f"{where}: lm-eval cannot make a list of these task files ({one_line(error)}); "
            "a task's name and tags are texts"
        ) from error


def find_task_file(
    manager: TaskManager, suite: Suite, name: str, changed: Mapping[str, Any] = MappingProxyType({})
) -> Mapping[str, Any]:
    """A task file as it stands, functions unresolved; files of its data that it names are looked for beside it.

    Args:
        manager: knows it.
        suite: for messages.
        name: of the task.
        changed: keys that stand in the place of its own.

    Raises:
        InputError: if there is none of that name, a key of it has a value of another kind than lm-eval's, or a file of
            its data may be two.
    """
    if name not in manager.all_subtasks:
        raise no_task(manager, suite, name)
    entry = manager.task_index[name]
    config = {**(entry.cfg or {}), **changed}
    for key, value in config.items():
        if key in _MAPPINGS and not isinstance(value, Mapping | None):
            raise InputError(f"task {name}: {key}: give keys, each with its value, not {value!r}")
        if key.endswith("_split") and not isinstance(value, str | int | None):
            raise InputError(f"task {name}: {key}: give the name of one split, not {value!r}")
        if key == "output_type" and not isinstance(value, str):
            raise InputError(f"task {name}: {key}: give the name of one kind of request, not {value!r}")
    return config if entry.yaml_path is None else _with_files_beside(name, config, entry.yaml_path.parent)


def no_task(manager: TaskManager, suite: Suite, name: str) -> InputError:
    """What is wrong with a name that is none of a task, group or tag, and what may be meant."""
    for folder in suite.tasks_paths:
        _check_readable(folder)
    places = [*map(str, suite.tasks_paths), *(f"lm-eval's {one}" for one in suite.lm_eval_folders)] or ["lm-eval"]
    hint = nearest(name, manager.all_tasks)
    shipped = _shipped_folders().get(name)
    if shipped is not None:
        hint = f"lm-eval has one: add {shipped} to the suite's lm_eval_folders"
    elif not suite.tasks_paths:
        hint += "; for task files of your own, name their folder in the suite's tasks_folder"
    return InputError(f"suite {suite.name}: no task {name!r} in {', '.join(places)}; {hint}")


@functools.cache
def _shipped_folders() -> Mapping[str, Path]:
    """Task, group or tag -> the folder in which lm-eval has it, below its own, or the one above all that have a tag.

    lm-eval's index says so, too, after many seconds.
    """
    root = Path(lm_eval.tasks.__file__).parent
    line = re.compile(rb"^(task|group|tag):[ \t]*(['\"]?)([^\s\[{'\"][^\r\n]*?)\2[ \t]*$", re.MULTILINE)
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*.yaml")):
        folder = file.parent.relative_to(root)
        for match in line.finditer(file.read_bytes()):
            name = match[3].decode(errors="replace")
            before = found.setdefault(name, folder)
            if match[1] == b"tag" and before != folder:
                found[name] = Path(os.path.commonpath([before, folder]) or ".")
    return found


def _with_files_beside(name: str, config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A task file whose data files have absolute paths; those of a data set on a hub lie there."""
    options = config.get("dataset_kwargs")
    if str(config.get("dataset_path")) not in FILE_FORMATS or not options:
        return config
    # `datasets` looks for files in the folder of data, where there is one.
    key = "data_dir" if options.get("data_dir") else "data_files"
    return {**config, "dataset_kwargs": {**options, key: _beside(f"task {name}: {key}", options.get(key), folder)}}


def _beside(what: str, paths: Any, folder: Path) -> Any:
    if isinstance(paths, Mapping):
        return {split: _beside(what, one, folder) for split, one in paths.items()}
    if isinstance(paths, list):
        return [_beside(what, one, folder) for one in paths]
    if not isinstance(paths, str) or "::" in paths or "://" in paths or os.path.isabs(paths):
        return paths
    beside, here = (
        os.path.join(os.path.realpath(one.parent), one.name) for one in (folder / paths, Path.cwd() / paths)
    )
    there = [one for one in (beside, here) if os.path.exists(one) or glob.glob(one)]
    if len(there) == 2 and beside != here:
        raise InputError(
            f"{what}: {paths!r:.300} is in {folder}, beside the task file, and in the working folder; "
            "remove or rename one, or give the whole path"
        )
    return there[0] if there else beside


def _check_readable(folder: Path) -> None:
    """lm-eval passes over task files that it cannot read.

    Raises:
        InputError: naming the first.
    """
    for file in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except (Exception, RecursionError) as error:  # YAML's own errors, and whatever its constructors raise
            raise InputError(f"{file}: lm-eval cannot read it ({one_line(error)}); mend it") from error


def import_functions(manager: TaskManager, name: str) -> None:
    """Import the Python files of a task's functions, which may add filters and metrics to lm-eval's own.

    What goes wrong with them is said when the task is built.
    """
    file = manager.task_index[name].yaml_path
    if file is not None:
        with contextlib.suppress(Exception), quiet_lm_eval():
            load_yaml(file)


def load_task(manager: TaskManager, name: str, changed: dict[str, Any]) -> Task:
    """A task, with some keys of its file replaced: lm-eval takes those from a group that the task is put into."""
    spec = {"group": "_", "task": [{"task": name, **changed}]} if changed else name
    return manager.load(spec)["tasks"][name]


def metadata_function(task: Task, name: str, key: str, task_file: Path | None) -> Any:
    """The function that a task file names under ``metadata``; None where it names none.

    Raises:
        InputError: if there is no such function.
    """
    reference = (task.config.metadata or {}).get(key)
    if reference is None:
        return None
    return find_function(str(reference), task_file.parent if task_file else Path(), f"task {name}: {key}")


def find_function(reference: str, folder: Path, what: str) -> Callable[..., Any]:
    """``MODULE.FUNCTION``, looked up as lm-eval does for its ``!function``: a file of `folder` first, then installed.

    Raises:
        InputError: if there is none; `what` says whose it is.
    """
    module_name, _, function = reference.rpartition(".")
    file = folder / f"{module_name.replace('.', '/')}.py"
    try:
        module = _load_module(file) if file.is_file() else importlib.import_module(module_name)
        found: Callable[..., Any] = getattr(module, function)
    except (ModuleNotFoundError, ValueError, AttributeError) as error:
        raise InputError(
            f"{what} {reference!r} not found ({error}); write MODULE.FUNCTION of a file in {folder}"
        ) from error
    except Exception as error:  # what the module itself does when it is imported
        raise InputError(f"{what} {reference!r} cannot be loaded ({one_line(error)}); mend it") from error
    return found


def _load_module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_task_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep the notes of lm-eval, NLTK and datasets, and progress bars, out of a worker's log and off the terminal."""
    loggers = {logging.getLogger("lm_eval"): logging.ERROR, logging.getLogger("datasets"): logging.CRITICAL}
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
