"""Breadcrumbs with TIES: drop the largest and the smallest entries, elect a sign, and add what agrees."""

from __future__ import annotations

from mergebench_ray.methods import register
from mergebench_ray.methods.breadcrumbs import Breadcrumbs


@register
class BreadcrumbsTies(Breadcrumbs):
    """As Breadcrumbs, but of what is kept only the entries count that have the elected sign."""

    name = "breadcrumbs_ties"
    summary = "breadcrumbs, of which a sign is elected and what agrees is added"
    source = "mergekit 0.1; Model Breadcrumbs, arXiv 2312.06795"
    elects = True
