"""`python -m mergebench_ray` is `mergebench-ray`."""

from __future__ import annotations

from mergebench_ray.cli import main

main()
