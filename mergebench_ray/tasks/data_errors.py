"""Data that a task cannot use, said in one line that names file and field."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from datasets.exceptions import DatasetsError
from jinja2 import meta, nodes
from lm_eval.utils import apply_template
from lm_eval.utils import env as template_environment

from mergebench_ray.errors import InputError, nearest, one_line

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "description")

_FIELD = re.compile(r"[\w.-]{1,60}")
_ALTERNATIVES = (nodes.CondExpr, nodes.Or, nodes.And, nodes.Not, nodes.Test, nodes.Compare)
_CHOOSING_FILTERS = frozenset({"default", "d", "select", "reject", "selectattr", "rejectattr", "tojson"})


def data_source(config: Mapping[str, Any], split: str | None) -> str:
    """Where a task's items come from: the file of its `data_files`, the data set's path, or the task's own."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(files, Mapping):
        files = files.get(split) or "its data_files"
    if files:
        return str(files)
    return str(config.get("dataset_path") or "its own data set")


@contextmanager
def explain_data_errors(
    task: str,
    source: str,
    data_id: str | None = None,
    gated: bool = False,
    splits: Collection[object] = (),
    known_splits: Collection[str] = (),
) -> Iterator[None]:
    """Turn what building a task raises into an `InputError` that names task, file and, where it is known, field.

    Args:
        task: name of the task.
        source: file or data set that its items come from.
        data_id: id of its data set on the hub, under which a local file can take its place.
        gated: whether that data set's licence must be accepted first.
        splits: names of splits that the task asks its data for.
        known_splits: names of splits that its data have, where the task file says.
    """
    try:
        yield
    except InputError:
        raise
    except jinja2.UndefinedError as error:
        named = re.search(r"'([^']+)' is undefined|^'(?!None)[^']+' has no attribute '([^']+)'", str(error))
        if named is None:
            raise _not_built(task, source, error) from error
        raise _missing_field(task, source, named[1] or named[2]) from error
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(key, str) and key in map(str, splits):
            there = f" ({nearest(key, known_splits)})" if known_splits else ""
            raise InputError(
                f"task {task}: {source} has no split {key!r}{there}; mend the task file or the suite"
            ) from error
        if not isinstance(key, str) or not _FIELD.fullmatch(key):
            raise _not_built(task, source, error) from error
        raise _missing_field(task, source, key) from error
    except (DatasetsError, OSError) as error:
        raise InputError(_unreadable(task, source, error, data_id, gated)) from error
    except (
        Exception,
        SystemExit,
    ) as error:  # a task file's templates and functions, and lm-eval's own checks, raise anything
        raise _not_built(task, source, error) from error


def check_fields(
    task: str, source: str, row: int, document: Mapping[str, Any], fields: Mapping[str, Sequence[str]]
) -> None:
    """Refuse an item without one of the `fields` that its templates need, or with a null there that they would print.

    Args:
        task: name of the task.
        source: file or data set that the item comes from.
        row: of the item, counted from 1.
        document: the item.
        fields: as `printed_fields` says.

    Raises:
        InputError: naming file, row and field.
    """
    for name, templates in sorted(fields.items()):
        if name in document and document[name] is not None:
            continue
        if name not in document or any(_prints_null(one, document, name) for one in templates):
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


def printed_fields(config: Mapping[str, Any], known: frozenset[str]) -> dict[str, list[str]]:
    """Fields that a task's templates cannot do without, each with these templates.

    lm-eval takes a template that is the name of a field (one of `known`) as that field. A template with statements
    (``{% if %}``) may do without its fields, and so may an expression that says what to print instead: ``{{a or ''}}``,
    ``{{a if a else b}}``, ``{{a | default('', true)}}``. What a function needs cannot be seen from outside.
    """
    fields: dict[str, list[str]] = {}
    for key in _TEMPLATES:
        template = config.get(key)
        if not isinstance(template, str) or "{%" in template:
            continue
        if template in known or (key.startswith("doc_to_") and template.isidentifier()):
            fields.setdefault(template, []).append(template)
            continue
        parsed = template_environment.parse(template)
        names = meta.find_undeclared_variables(parsed) & set(_names_without_alternative(parsed))
        for name in names.difference(template_environment.globals):
            fields.setdefault(name, []).append(template)
    return fields


def _prints_null(template: str, document: Mapping[str, Any], name: str) -> bool:
    """Whether a template makes the word None, or an error, of a field that is null: not so ``{{a | int(0)}}``."""
    return template == name or _nones(template, document) > _nones(template, {**document, name: ""})


def _nones(template: str, document: Mapping[str, Any]) -> float:
    """How often a rendered template says None; infinity where it cannot be rendered."""
    try:
        return int(apply_template(template, dict(document)).casefold().count("none"))
    except Exception:  # a task file's templates raise anything
        return math.inf


def _names_without_alternative(node: nodes.Node) -> Iterator[str]:
    """Names in a template whose value reaches the text whatever it is."""
    if isinstance(node, nodes.Name):
        yield node.name
    if isinstance(node, _ALTERNATIVES) or (isinstance(node, nodes.Filter) and node.name in _CHOOSING_FILTERS):
        return
    for child in node.iter_child_nodes():
        yield from _names_without_alternative(child)


def _not_built(task: str, source: str, error: BaseException) -> InputError:
    return InputError(
        f"task {task}: lm-eval cannot make items of {source} ({one_line(error)}); mend the task file, or what it reads"
    )


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
