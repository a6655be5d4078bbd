"""What a model family is: what its tensors' names mean, and which settings say what they compute."""

from __future__ import annotations

from mergebench_ray.families.family import ModelFamily, family_of

__all__ = ["ModelFamily", "family_of"]
