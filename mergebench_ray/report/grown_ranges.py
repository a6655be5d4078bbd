"""How far a search has gone beyond the ranges that it began with (`grow_to`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergebench_ray.config import Range, Sweep
from mergebench_ray.runs.trials import Trial


def grown_ranges(sweep: Sweep, tried: Sequence[Trial]) -> list[str]:
    """A line for each range that may grow: where it began, and which candidates' numbers lie beyond that."""
    found = []
    for method, parameters in sweep.methods.items():
        rows = [one for one in tried if one.method == method]
        for name, searched in parameters.items():
            if isinstance(searched, Range) and searched.grow_to is not None and rows:
                found.append(f"{method}, {name}: {_finding(searched, name, rows)}")
    return found


def _finding(searched: Range, name: str, rows: Sequence[Trial]) -> str:
    values: dict[str, list[float]] = {}
    for row in rows:
        for path, value in _numbers(row.parameters.get(name)):
            values.setdefault(path, []).append(value)
    begun = f"begun from {searched.low:g} to {searched.high:g}"
    beyond = [
        f"{path or 'it'} tried {' and '.join(ends)}"
        for path, some in values.items()
        if (
            ends := [f"down to {min(some):.3g}"] * (min(some) < searched.low)
            + [f"up to {max(some):.3g}"] * (max(some) > searched.high)
        )
    ]
    return f"{begun}; {', '.join(beyond) or 'no bound has moved'}"


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Each number of a hyper-parameter, and where it stands in it."""
    if isinstance(value, Mapping | list | tuple):
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        for step, one in inside:
            yield from _numbers(one, f"{path}.{step}".removeprefix("."))
    elif isinstance(value, int | float):
        yield path, float(value)
