"""Data that a task cannot use, said in one line that names file and field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from datasets.exceptions import DatasetsError
from jinja2 import meta, nodes
from lm_eval.utils import env as template_environment

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.task_files import nearest

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "description")


def data_source(config: Mapping[str, Any], split: str | None) -> str:
    """Where a task's items come from: the file of its `data_files`, the data set's path, or the task's own."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(files, Mapping):
        files = files.get(split, files)
    if files:
        return str(files)
    return str(config.get("dataset_path") or "its own data set")


@contextmanager
def explain_data_errors(task: str, source: str, data_id: str | None = None, gated: bool = False) -> Iterator[None]:
    """Turn what building a task raises about its data into an `InputError` that names task, file and field.

    Args:
        task: name of the task.
        source: file or data set that its items come from.
        data_id: id of its data set on the hub, under which a local file can take its place.
        gated: whether that data set's licence must be accepted first.
    """
    try:
        yield
    except jinja2.UndefinedError as error:
        named = re.search(r"'([^']+)' is undefined|no attribute '([^']+)'", str(error))
        raise _missing_field(task, source, next(filter(None, named.groups())) if named else str(error)) from error
    except KeyError as error:
        raise _missing_field(task, source, str(error.args[0]) if error.args else "?") from error
    except (DatasetsError, OSError) as error:
        raise InputError(_unreadable(task, source, error, data_id, gated)) from error


def check_fields(task: str, source: str, row: int, document: Mapping[str, Any], fields: frozenset[str]) -> None:
    """Refuse an item without one of the `fields` that its templates print.

    Raises:
        InputError: naming file, row (counted from 1) and field.
    """
    for name in sorted(fields):
        if document.get(name) is None:
            raise _missing_field(task, f"{source}, item {row}", name)


def check_named_fields(
    task: str, source: str, row: int, document: Mapping[str, Any], key: str, fields: Sequence[str]
) -> None:
    """Refuse an item without one of the fields that a setting of the suite names.

    Args:
        task: name of the task.
        source: file or data set that the item comes from.
        row: of the item, counted from 1.
        document: the item.
        key: the setting.
        fields: that it names.

    Raises:
        InputError: naming file, row, setting and field.
    """
    for name in fields:
        if document.get(name) is None:
            raise InputError(
                f"task {task}: {source}, item {row}: no field {name!r}, which the suite's {key} names; "
                f"{nearest(name, [field for field, value in document.items() if value is not None])}"
            )


def printed_fields(config: Mapping[str, Any], known: frozenset[str]) -> frozenset[str]:
    """Fields that a task's templates cannot do without.

    lm-eval takes a template that is the name of a field (one of `known`) as that field. A template with statements or
    conditions (``{% if %}``, ``{{a if b else c}}``) may do without its fields, and a function's needs cannot be seen
    from outside: neither counts.
    """
    names: set[str] = set()
    for key in _TEMPLATES:
        template = config.get(key)
        if not isinstance(template, str) or "{%" in template:
            continue
        if template in known or (key.startswith("doc_to_") and template.isidentifier()):
            names.add(template)
            continue
        parsed = template_environment.parse(template)
        if parsed.find(nodes.CondExpr) is None:
            names |= meta.find_undeclared_variables(parsed)
    return frozenset(names - set(template_environment.globals))


def _missing_field(task: str, source: str, field: str) -> InputError:
    return InputError(f"task {task}: {source}: field {field!r} is missing; add it to the data or mend the task file")


def _unreadable(task: str, source: str, error: Exception, data_id: str | None, gated: bool) -> str:
    reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:200]
    if data_id is None:
        return f"task {task}: {source} cannot be read ({reason}); check the file"
    instead = f"give a local copy with --data {data_id}=PATH (evaluation.data in a sweep)"
    if gated or "gated" in reason:
        page = f"https://huggingface.co/datasets/{data_id.partition(':')[0]}"
        return f"task {task}: data set {data_id} is gated; accept its licence at {page} and set HF_TOKEN, or {instead}"
    return (
        f"task {task}: data set {data_id} cannot be had ({reason}); download it where the hub is reached, or {instead}"
    )
