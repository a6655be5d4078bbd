"""Searches whose process is killed at one of its writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.trial_store import TrialStore


class Killed(BaseException):
    """Ends a sitting where a process would be killed."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: int, torn: bool) -> list[int]:
    """Let the process end at its place-th write; with a part of it on disk, or none."""
    writes = [0]

    def count(before: Any, lost: Any) -> Any:
        def write(self: Any, *arguments: Any) -> Any:
            writes[0] += 1
            if writes[0] == place:
                lost(self, *arguments)
                raise Killed
            return before(self, *arguments)

        return write

    def tear(self: JsonLines, records: Any) -> None:
        if torn:
            self._size = self._begin() if self._size is None else self._size
            content = "".join(json.dumps(dict(record)) + "\n" for record in records).encode()
            with self.path.open("ab") as stream:
                stream.write(content[: 2 * len(content) // 3])

    monkeypatch.setattr(JsonLines, "append", count(JsonLines.append, tear))
    for write in ("append", "extend"):
        monkeypatch.setattr(TrialStore, write, count(getattr(TrialStore, write), lambda *_: None))
    return writes
