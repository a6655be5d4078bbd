"""Optuna's database in memory, for studies that as files would take minutes."""

from __future__ import annotations

import sqlite3
from functools import cache

import optuna

_URL = "sqlite:///:memory:"


def memory_storage() -> optuna.storages.RDBStorage:
    """An empty one; a copy of the first, as making its tables takes longer than many a test."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.deserialize(_empty())
        return connection

    return optuna.storages.RDBStorage(
        _URL, engine_kwargs={"creator": connect}, skip_table_creation=True, skip_compatibility_check=True
    )


@cache
def _empty() -> bytes:
    with optuna.storages.RDBStorage(_URL).engine.connect() as connection:
        content: bytes = connection.connection.driver_connection.serialize()  # type: ignore[union-attr]
    return content
