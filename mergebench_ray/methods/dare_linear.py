"""DARE as mergekit does it: drop entries of the task vectors at random, rescale the rest, weigh and add them."""

from __future__ import annotations

from mergebench_ray.methods import register
from mergebench_ray.methods.dare_ties import DareTies


@register
class DareLinear(DareTies):
    """θ₀ + λ Σ wₖ / density · (entries of τₖ that were not dropped), dropped as by DARE."""

    name = "dare_linear"
    summary = "random drop and rescale, then a weighted sum, each specialist with a density of its own"
    source = "mergekit 0.1; DARE, arXiv 2311.03099"
    elects = False
