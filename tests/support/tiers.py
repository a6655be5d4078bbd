"""Tiers: what a test starts decides how it is marked, and a test that starts more than its marks say fails.

Marks come from the fixtures that a test uses, or stand in its file; a test that has none of them is `fast`. Only calls
in the test's own process are watched: for what it runs in others, and what is slow, its marks are believed.
"""

from __future__ import annotations

import functools
import importlib
from operator import attrgetter
from typing import Any

import pytest

STARTERS: dict[str, list[tuple[str, str]]] = {
    "vllm": [("mergebench_ray.engines", "VLLMEngine.__init__")],
    "ray": [("ray", "init")],
    "compiler": [
        ("mergebench_ray.kernels.compilers", "helper_process"),
        ("mergebench_ray.kernels.compiled_kernel", "CompiledKernel.__init__"),
    ],
    "slow": [],
}
"""Each tier, in the order in which they run, and the calls that start what it is named for."""
FIXTURES = {"engine": "vllm", "tiny_engine": "vllm", "ray_cluster": "ray"}
"""What the fixtures of the whole session start."""
_may_start: set[str] | None = None


def mark(item: pytest.Item) -> None:
    """Mark a test by what its fixtures start."""
    for name, tier in FIXTURES.items():
        if name in getattr(item, "fixturenames", ()):
            item.add_marker(tier)
    if not tiers(item):
        item.add_marker("fast")


def tiers(item: pytest.Item) -> set[str]:
    """What a test may start."""
    return {tier for tier in STARTERS if item.get_closest_marker(tier)}


def by_tier(items: list[pytest.Item]) -> None:
    """Sort tests by tier, so that those that share an engine or a cluster follow each other."""
    order = {tier: place for place, tier in enumerate(STARTERS)}
    items.sort(key=lambda item: min((order[tier] for tier in tiers(item)), default=len(order)))


def begin(item: pytest.Item) -> None:
    """Let only what this test's marks say be started from here on."""
    global _may_start
    _may_start = tiers(item)


def watch() -> None:
    """Have a test that starts more than its marks say fail, whatever is there already."""
    for tier, calls in STARTERS.items():
        for module, call in calls:
            *classes, name = call.split(".")
            owner: Any = importlib.import_module(module)
            owner = attrgetter(".".join(classes))(owner) if classes else owner
            setattr(owner, name, _watched(getattr(owner, name), tier))


def _watched(call: Any, tier: str) -> Any:
    @functools.wraps(call)
    def watched(*arguments: Any, **keywords: Any) -> Any:
        if _may_start is not None and tier not in _may_start:
            pytest.fail(f"this test starts what its marks do not say: give it pytest.mark.{tier}")
        return call(*arguments, **keywords)

    return watched
