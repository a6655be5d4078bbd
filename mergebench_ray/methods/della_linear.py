"""DELLA without an election: drop entries at random, the smaller ones of a row more often, and add the rest."""

from __future__ import annotations

from mergebench_ray.methods import register
from mergebench_ray.methods.della import Della, DellaLinearParameters


@register
class DellaLinear(Della):
    """θ₀ + λ Σ wₖ / pₖ · (entries of τₖ that were not dropped), dropped as by DELLA."""

    name = "della_linear"
    summary = "random drop, small entries of a row more often, and rescale, then task arithmetic"
    source = "DELLA, arXiv 2406.11617"
    Parameters = DellaLinearParameters
    elects = False
