"""Generators of the five domains, by name: each module has `items(split)` and `score(item, answer)`."""

from __future__ import annotations

from types import ModuleType

from mergebench_ray.suites.smollm2_mini.generate import coding, instruction, math, multilingual, safety

GENERATORS: dict[str, ModuleType] = {
    "instruction": instruction,
    "math": math,
    "multilingual": multilingual,
    "coding": coding,
    "safety": safety,
}
