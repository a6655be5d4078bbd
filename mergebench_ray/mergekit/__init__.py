"""Recipes of mergekit, in and out: what they say in words of ours, and ours in theirs where they can say it."""

from __future__ import annotations

from mergebench_ray.mergekit.document import is_mergekit
from mergebench_ray.mergekit.reading import ForeignMerge, read_recipe
from mergebench_ray.mergekit.writing import FILE_NAME, CannotSayError, mergekit_recipe

__all__ = ["FILE_NAME", "CannotSayError", "ForeignMerge", "is_mergekit", "mergekit_recipe", "read_recipe"]
