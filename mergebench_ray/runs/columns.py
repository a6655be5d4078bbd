"""Columns of the trials table: a stable order, and one Arrow type per column whatever the methods put in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

_INT64 = 1 << 63


def column_order(rows: Sequence[Sequence[str]]) -> list[str]:
    """Every name of every row; a name that only later rows have stands behind the one that it follows there."""
    order: list[str] = []
    for names in dict.fromkeys(map(tuple, rows)):
        position = 0
        for name in names:
            if name in order:
                position = order.index(name) + 1
            else:
                order.insert(position, name)
                position += 1
    return order


def typed_array(values: Sequence[Any]) -> pa.Array[Any]:
    """An Arrow array of the narrowest type that holds all values; a mix of kinds becomes text."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if not present or kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {datetime}:
        return pa.array(values, pa.timestamp("us", tz="UTC"))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    small = all(abs(value) < _INT64 for value in present if isinstance(value, int))
    if kinds == {int} and small:
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and small:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = [value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.string())


def flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Nested mappings and lists as one level: ``{"a": {"b": [1, 2]}}`` gives ``prefix.a.b.0`` and ``prefix.a.b.1``.

    A name with a dot in it is quoted, so that no two leaves have one name; an empty part inside is a leaf, as JSON.
    """
    if isinstance(value, Mapping):
        parts = [(json.dumps(key) if "." in str(key) else str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, part in parts:
        empty = isinstance(part, Mapping | list | tuple) and not part
        flat |= {f"{prefix}.{key}": json.dumps(part)} if empty else flatten(f"{prefix}.{key}", part)
    return flat


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of flat rows, which need not have the same columns."""
    names = column_order([list(row) for row in rows])
    return pa.table({name: typed_array([row.get(name) for row in rows]) for name in names})
