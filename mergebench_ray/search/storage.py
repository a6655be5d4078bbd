"""The database that a sweep names for its study: tried before anything starts, its password never shown."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from mergebench_ray.config.storage_url import HIDDEN, hide_password, secrets_of
from mergebench_ray.errors import InputError

if TYPE_CHECKING:
    import sqlalchemy

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "mssql": 1433, "oracle": 1521}
_PROBE_SECONDS = 5.0


def check_storage(url: str) -> None:
    """Connect to a storage once, leaving nothing behind: an SQLite file that is not there yet is not made.

    Raises:
        InputError: unknown kind of database, a driver that is not installed, or one that does not answer.
    """
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite" and not _sqlite_is_there(address.database):
            sqlalchemy.create_engine(address)
            return
        if address.host and (port := address.port or _PORTS.get(address.get_backend_name())):
            # A database's own client may wait for minutes.
            socket.create_connection((address.host, port), timeout=_PROBE_SECONDS).close()
        _connect(address)
    except InputError:
        raise
    except Exception as error:
        raise storage_error(url, error) from error


def storage_error(url: str, error: Exception) -> InputError:
    """What to say of a storage that cannot be opened: one line, without the password."""
    said = " ".join(str(error).split("(Background on this error")[0].split())
    if any(secret in said for secret in secrets_of(url)):
        said = "its message holds the password"
    remedy = f"give the password, which is never stored ({HIDDEN})" if HIDDEN in url else "check the URL"
    return InputError(
        f"search.storage = {hide_password(url)!r:.300}: cannot be opened ({type(error).__name__}: {said:.500}); "
        f"{remedy}"
    )


def _sqlite_is_there(database: str | None) -> bool:
    """Whether the file exists; if it does not, its folder must."""
    if not database or database == ":memory:" or database.startswith("file:"):
        raise InputError(
            "search.storage: an SQLite database in memory is lost with the process; write sqlite:///FILE, or leave "
            "search.storage out"
        )
    file = Path(database)
    if os.path.lexists(file):
        if not file.is_file():
            raise InputError(f"search.storage: {file} is not a regular file; check the URL")
        return True
    if not (os.path.isdir(file.parent) and os.access(file.parent, os.W_OK | os.X_OK)):
        raise InputError(
            f"search.storage: {file.parent} is not a folder that can be written; make it, or check the URL"
        )
    return False


def _connect(address: sqlalchemy.URL) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(address)
    try:
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()
