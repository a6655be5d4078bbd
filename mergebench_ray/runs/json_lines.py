"""A file of JSON, a line for each record, that grows: what was added survives the loss of every process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular, sync_folder


class JsonLines:
    """Records in a file; one process writes at a time.

    A line that was not finished when its writer was killed does not count, and is gone with the next one.

    Args:
        path: the file; it and its folder are made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size: int | None = None

    def read(self) -> list[dict[str, Any]]:
        """All records.

        Raises:
            InputError: a finished line is no record: the file is damaged.
        """
        content = self._content()
        records = []
        for number, line in enumerate(content[: _finished(content)].splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise InputError(
                    f"{self.path}, line {number}: damaged, no JSON object; restore it from a copy, or start again in "
                    "another folder"
                )
            records.append(record)
        return records

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; all of them are on disk when this returns, and after a crash the first few of them, or all."""
        text = "".join(f"{json.dumps(dict(record), ensure_ascii=False)}\n" for record in records)
        if not text:
            return
        if self._size is None:
            self._size = self._begin()
        with self.path.open("r+b") as stream:
            stream.truncate(self._size)  # what a full disk, or a kill, left of the time before
            stream.seek(self._size)
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
            self._size = stream.tell()

    def _begin(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        sync_folder(self.path.parent)
        return _finished(self._content())

    def _content(self) -> bytes:
        try:
            with open_regular(self.path) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return b""


def _finished(content: bytes) -> int:
    """Length of the finished lines."""
    return content.rfind(b"\n") + 1
