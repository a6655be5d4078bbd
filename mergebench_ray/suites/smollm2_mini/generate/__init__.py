"""Generators of the five domains, by name: each module has `items(split)` and `score(item, answer)`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

from mergebench_ray.suites.smollm2_mini.generate import coding, instruction, math, multilingual, safety
from mergebench_ray.suites.smollm2_mini.generate.common import Item

GENERATORS: dict[str, ModuleType] = {
    "instruction": instruction,
    "math": math,
    "multilingual": multilingual,
    "coding": coding,
    "safety": safety,
}


@functools.cache
def generated(domain: str, split: str) -> Sequence[Item]:
    """A domain's items of a split, drawn once in a process: all of its tasks ask for them. Not to be changed."""
    return tuple(GENERATORS[domain].items(split))
