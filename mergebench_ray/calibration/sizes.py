"""Memory that the computation of a statistic takes, from tensor headers alone; what is planned is what is asked for."""

from __future__ import annotations

from mergebench_ray.checkpoints import Checkpoint

_FLOAT = 4
_WORKER_BYTES = 1 << 30  # interpreter, transformers, activations, one tensor being read


def job_bytes(kind: str, base: Checkpoint, specialists: int, dtype: str) -> int:
    """Bytes of a process that computes a statistic; an upper bound.

    Args:
        kind: which statistic.
        base: a model of the specialists' shapes.
        specialists: that one computation is of, where it takes all at once.
        dtype: what is computed in.
    """
    item = 2 if dtype == "bfloat16" else _FLOAT
    merged = sum(info.numel for name, info in base.tensors.items() if base.is_merged(name))
    if kind == "layerwise":
        # Layer by layer, neither a whole model nor all Gram matrices are ever there, but the solution is.
        layer = (base.num_parameters * item * (specialists + 1) + gram_bytes(base) * specialists) // base.num_layers
        return layer + merged * _FLOAT + _WORKER_BYTES
    statistic = gram_bytes(base) if kind == "gram" else merged * _FLOAT
    return base.num_parameters * item + statistic + _WORKER_BYTES


def gram_bytes(base: Checkpoint) -> int:
    """One matrix for each linear layer; fewer in truth, since some layers share their input."""
    return sum(
        info.shape[-1] ** 2 * _FLOAT
        for name, info in base.tensors.items()
        if base.is_merged(name) and len(info.shape) == 2
    )
