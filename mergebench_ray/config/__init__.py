"""What a user writes down: references, recipes, suites and sweeps, typed and checked before anything is loaded."""

from __future__ import annotations

from mergebench_ray.config.calibration import (
    CalibrationInput,
    CalibrationOptions,
    CalibrationRecord,
    CalibrationSource,
)
from mergebench_ray.config.engine import EngineOptions
from mergebench_ray.config.hyper_parameters import Choices, Fixed, Range
from mergebench_ray.config.merged_parts import MergedParts
from mergebench_ray.config.recipe import Recipe
from mergebench_ray.config.reference import ModelRef, exists_here
from mergebench_ray.config.suite import Domain, Suite
from mergebench_ray.config.sweep import SearchOptions, Sweep

__all__ = [
    "CalibrationInput",
    "CalibrationOptions",
    "CalibrationRecord",
    "CalibrationSource",
    "Choices",
    "Domain",
    "EngineOptions",
    "Fixed",
    "MergedParts",
    "ModelRef",
    "Range",
    "Recipe",
    "SearchOptions",
    "Suite",
    "Sweep",
    "exists_here",
]
