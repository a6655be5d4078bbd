"""Memory of the methods that see data, from tensor headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Choices, Fixed, Sweep
from mergebench_ray.methods import get_method
from mergebench_ray.placement.need import Need

_FLOAT = 4
_WORKER = 1 << 30  # interpreter, transformers, activations


def calibration_needs(sweep: Sweep, base: Checkpoint, specialists: int, *, on_gpu: bool) -> list[Need]:
    """What calibration and its statistics take, if any method of the sweep sees data; upper bounds."""
    kinds = set(calibration_kinds(sweep))
    if not kinds:
        return []
    where: Literal["gpu", "host"] = "gpu" if on_gpu else "host"
    parameters = sum(info.numel for info in base.tensors.values())
    merged = sum(info.numel for name, info in base.tensors.items() if base.family.is_merged(name))
    item = 2 if sweep.calibration.dtype == "bfloat16" else _FLOAT
    # Layer by layer, neither a whole model nor all Gram matrices are ever there.
    largest = max(_statistic_bytes(kind, base, merged) for kind in kinds)
    model = parameters * item if kinds != {"layerwise"} else parameters * item // base.num_layers
    needs = [Need(what="calibration, one specialist", count=1, bytes_each=model + largest + _WORKER, where=where)]
    shards = sweep.bank.shards
    resident = sum(_resident_bytes(kind, base, merged, specialists) for kind in kinds)
    if resident:
        each = math.ceil(resident / shards)
        needs.append(Need(what="bank shard: statistics of methods", count=shards, bytes_each=each, where=where))
    return needs


def calibration_kinds(sweep: Sweep) -> Iterator[str]:
    """Statistics that take data."""
    for name, parameters in sweep.methods.items():
        method = get_method(name)
        values: dict[str, Any] = {}
        for key, parameter in parameters.items():
            # The choice that needs most: a switch that is on.
            if isinstance(parameter, Choices):
                values[key] = max(parameter.choices) if all(isinstance(c, bool) for c in parameter.choices) else None
            elif isinstance(parameter, Fixed):
                values[key] = parameter.value
        known = {key: value for key, value in values.items() if value is not None}
        if method.calibration_samples(method.Parameters.model_validate(known)):
            yield from method.statistics - {"magnitude_histogram"}


def _statistic_bytes(kind: str, base: Checkpoint, merged: int) -> int:
    """A statistic of one specialist; for masks the gradient that they are trained with."""
    if kind == "gram":
        return _gram_bytes(base)
    return _gram_bytes(base) // base.num_layers if kind == "layerwise" else merged * _FLOAT


def _resident_bytes(kind: str, base: Checkpoint, merged: int, specialists: int) -> int:
    """What the shards keep between merges."""
    return {
        "fisher": merged * _FLOAT * specialists,
        "mask": merged * specialists,
        "gram": 2 * merged * _FLOAT + 2 * merged + _gram_bytes(base),
    }.get(kind, 0)


def _gram_bytes(base: Checkpoint) -> int:
    """One matrix for each linear layer; fewer in truth, since some layers share their input."""
    return sum(
        info.shape[-1] ** 2 * _FLOAT
        for name, info in base.tensors.items()
        if base.family.is_merged(name) and len(info.shape) == 2
    )
