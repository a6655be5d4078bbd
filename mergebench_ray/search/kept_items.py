"""Scored items as a run keeps them: a row that people read, and beside it what a score is made of again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.runs.parquet import read_parquet
from mergebench_ray.scores import ItemRow

_ALWAYS = ("domain", "task", "item", "prompt_digest")
"""Columns of every version; one without any of the others kept too little."""
_LATER: dict[str, pa.DataType] = {
    **{name: pa.string() for name in ItemRow.__annotations__ if name not in _ALWAYS},
    **{"score": pa.float64(), "value": pa.string(), "parsed": pa.bool_(), "digest": pa.string()},
}
_MAY_LACK = frozenset({"score", "parsed"})
_ABSENT = {"absent": True}


def kept_row(item: GradedItem, digest: str | None) -> dict[str, Any]:
    """A row of a run's items.

    Args:
        item: what came of an item.
        digest: of the item, and of all that its answer depends on but the weights; None where it is not known.
    """
    row: dict[str, Any] = {**item.row, "value": value_text(item.value), "parsed": item.parsed}
    return row if digest is None else row | {"digest": digest}


def read_kept(path: Path) -> dict[str, GradedItem]:
    """Digest -> item, of a file of `kept_row`s; without those that cannot be made again.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is damaged.
    """
    table = read_parquet(path, dict.fromkeys(_ALWAYS, pa.string()), _LATER)
    if not _LATER.keys() <= set(table.column_names):
        return {}  # of an earlier version
    found = {}
    for row in table.to_pylist():
        if all(row[name] is not None for name in _LATER.keys() - _MAY_LACK):
            try:
                value = value_of(row["value"])
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}: damaged ({row['value']!r:.80} is no value of an item)") from error
            kept = ItemRow(**{name: row[name] for name in ItemRow.__annotations__})  # type: ignore[typeddict-item]
            found[row["digest"]] = GradedItem(value, kept, row["parsed"])
    return found


def kept_digests(path: Path) -> frozenset[str]:
    """Digests of the items of such a file; none of an earlier version's, or where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    try:
        table = read_parquet(path, {}, {"digest": pa.string()})
    except FileNotFoundError:
        return frozenset()
    found = table["digest"].to_pylist() if "digest" in table.column_names else []
    return frozenset(digest for digest in found if digest is not None)


def value_text(value: Any) -> str | None:
    """A metric's value for an item as JSON, from which `value_of` makes the same again; None where that cannot be."""
    try:
        return json.dumps(_plain(value))
    except TypeError:
        return None


def value_of(text: str) -> Any:
    """What `value_text` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    return _restored(json.loads(text))


def _plain(value: Any) -> Any:
    if value is ABSENT:
        return _ABSENT
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return {"tuple": [_plain(one) for one in value]}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ABSENT if value == _ABSENT else tuple(_restored(one) for one in value["tuple"])
    return [_restored(one) for one in value] if isinstance(value, list) else value
