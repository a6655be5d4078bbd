"""A scorer with engines and a bank that only note what they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from recorded_scorer import Parts


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parts:
    return Parts(monkeypatch, tmp_path)


@pytest.fixture
def looked(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts.look(monkeypatch)
    return parts
