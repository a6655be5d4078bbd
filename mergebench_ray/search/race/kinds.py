"""The kinds of race by name; a new kind is a file and a row here."""

from __future__ import annotations

from mergebench_ray.search.race.exact import Exact
from mergebench_ray.search.race.full import FullScoring
from mergebench_ray.search.race.halving import Halving
from mergebench_ray.search.race.pool import Pool, SparingPool
from mergebench_ray.search.race.race import Race

KINDS: dict[str, type[Race]] = {
    "pool": Pool,
    "sparing": SparingPool,
    "halving": Halving,
    "exact": Exact,
    "none": FullScoring,
}
"""Name -> class; the keyword arguments of its constructor are the kind's settings."""
