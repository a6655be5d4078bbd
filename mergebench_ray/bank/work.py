"""What the driver asks shards to do: small messages that name tensors and numbers, never weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergebench_ray.bank.layout import Layout, Overlap
from mergebench_ray.kernels import BlockFunction, Scalars, Segment
from mergebench_ray.methods import Calibrated, Method, Solver, TensorPlace


@dataclass(frozen=True)
class Work:
    """A merge, for all shards alike; lists run parallel to `Layout.merged`.

    Attributes:
        kernel: the function to run.
        scalars: the distinct scalars.
        assignment: index into `scalars` for each tensor.
        fingerprints: what determines each tensor's content.
        companions: files that the function reads beside the task vectors, one a specialist.
        solver: how to get the tensors that are not merged entry by entry.
        out_dtype: what the function's results are rounded to, once.
    """

    kernel: BlockFunction
    scalars: tuple[Scalars, ...]
    assignment: tuple[int, ...]
    fingerprints: tuple[str, ...]
    companions: tuple[Calibrated, ...] = ()
    solver: Solver | None = None
    out_dtype: torch.dtype = torch.bfloat16


def plan_work(
    layout: Layout,
    method: Method,
    parameters: Any,
    prepared: Any,
    specialists: Sequence[str],
    contents: Mapping[str, str],
) -> Work:
    """Work out the scalars and the fingerprint of every merged tensor.

    Args:
        layout: the tensors.
        method: the method.
        parameters: its hyper-parameters, completed.
        prepared: what its `prepare` returned.
        specialists: sorted names.
        contents: digests of base and specialists, by role.
    """
    kernel = method.kernel(parameters)
    companions = method.companions(parameters, prepared)
    solver = method.solver(parameters, prepared)
    function = [kernel.function.__module__, kernel.function.__qualname__, kernel.options]
    common = json.dumps([contents, *function, [companion.key for companion in companions]])
    distinct: dict[str, int] = {}
    scalars: list[Scalars] = []
    assignment, fingerprints = [], []
    for tensor in layout.merged:
        place = TensorPlace(tensor.name, tensor.layer, layout.num_layers, tensor.part, tensor.kind)
        numbers = method.scalars(parameters, prepared, place, specialists)
        text = json.dumps(numbers, sort_keys=True)
        if text not in distinct:
            distinct[text] = len(scalars)
            scalars.append(numbers)
        assignment.append(distinct[text])
        how = solver.key if solver and tensor.name in solver else text
        content = f"{common}\n{tensor.name}\n{tensor.part}\n{how}"
        fingerprints.append(hashlib.sha256(content.encode()).hexdigest())
    return Work(kernel, tuple(scalars), tuple(assignment), tuple(fingerprints), companions, solver)


def segments_of(work: Work, todo: Sequence[tuple[Overlap, int]], first: int) -> list[Segment]:
    """One segment per run of neighbours with the same scalars, or per tensor where positions count.

    Args:
        work: the merge.
        todo: parts of tensors in flat order, each with the tensor's index in the layout.
        first: entry of the flat order at which the arrays begin.
    """
    segments: list[Segment] = []
    for overlap, index in todo:
        scalars = work.scalars[work.assignment[index]]
        start, stop = overlap.start - first, overlap.stop - first
        last = segments[-1] if segments else None
        if last and last.stop == start and last.scalars is scalars and not work.kernel.uses_position:
            segments[-1] = Segment(last.start, stop, last.position, scalars)
        else:
            segments.append(Segment(start, stop, overlap.position, scalars))
    return segments
