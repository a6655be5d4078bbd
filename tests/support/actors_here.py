"""Handles of actors that are objects of this process, so that what talks to actors is tested without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray


class ActorHere:
    """Stands for an `Actor`: calls begin and end at once; `fetch_here` makes `ray.get` hand over what came back.

    What it holds need not be of the actor's class: it has methods of the same names.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return getattr(self.actor, method.__name__)

    def call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.method(method)(*arguments, **options)

    def kill(self) -> None:
        ray.kill(self)


def fetch_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ray.get` give back what it is given."""
    monkeypatch.setattr(ray, "get", lambda values: values)
