"""Handles of actors that are objects of this process, so that what talks to actors is tested without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import ray


class ActorHere:
    """Stands for an `Actor`: calls begin and end at once; `fetch_here` makes `ray.get` hand over what came back.

    What it holds need not be of the actor's class: it has methods of the same names.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    @property
    def id(self) -> str:
        return str(id(self.actor))

    def method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return getattr(self.actor, method.__name__)

    def call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.method(method)(*arguments, **options)

    def stream(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> StreamHere:
        return StreamHere(self.method(method)(*arguments, **options))

    def kill(self) -> None:
        ray.kill(self)


class StreamHere:
    """Stands for an `ActorStream`: works when it is asked, and is closed where it would be cancelled."""

    def __init__(self, generator: Generator[Any, None, None]) -> None:
        self._generator = generator

    def __next__(self) -> Any:
        return next(self._generator)

    def cancel(self) -> None:
        self._generator.close()


def fetch_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ray.get` give back what it is given."""
    monkeypatch.setattr(ray, "get", lambda values: values)
