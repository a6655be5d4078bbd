"""A server of objects with models on it, for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from object_server import ObjectServer, object_server
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base whose weights are many times as large as its header, and what came of it."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", hidden_size=256)
    return {
        "base": base,
        "math": tiny_specialist(folder / "math", base, seed=1),
        "code": tiny_specialist(folder / "code", base, seed=2),
        "adapter": tiny_adapter(folder / "adapter", base, seed=3),
    }


@pytest.fixture(scope="session")
def running(models: dict[str, Path]) -> Iterator[ObjectServer]:
    with object_server() as server:
        for name, folder in models.items():
            server.put(folder, name)
        yield server


@pytest.fixture
def server(
    running: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_compiler: None
) -> ObjectServer:
    """The server with all models, and a node whose cache is empty."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    running.forget()
    return running
