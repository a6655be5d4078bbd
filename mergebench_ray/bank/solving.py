"""Solving for whole tensors in a shard: each group of tensors by one thread, so that the bits never differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints import Checkpoint, require_finite
from mergebench_ray.kernels.threads import torch_threads
from mergebench_ray.methods import Solver
from mergebench_ray.steps import SLOWEST_FETCH, STEP_SECONDS, Steps

_OPERATIONS = 20  # for each entry and row or column of each model: a decomposition of all of it
_SLOWEST = 5e9
"""Of those in a second, at the least."""


class Solutions:
    """Solves groups and keeps what their next solutions can share.

    Args:
        checkpoints: the base and the specialists in the order of their sorted names.
        device: where to compute.
        steps: told what it is at.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], device: torch.device, steps: Steps) -> None:
        self._checkpoints = checkpoints
        self._device, self._steps = device, steps
        self._systems: dict[tuple[str, ...], Any] = {}
        self._system_key = ""

    def of(
        self, solver: Solver, groups: Sequence[tuple[str, ...]], threads: int
    ) -> Iterator[tuple[tuple[str, ...], list[Tensor]]]:
        """Each group with its merged tensors, flat bf16 in host memory, as they are solved."""
        if solver.system_key and solver.system_key != self._system_key:
            self._systems, self._system_key = {}, solver.system_key

        def solve(group: tuple[str, ...]) -> list[Tensor]:
            with self._steps.step(self._longest(group)):
                if solver.system_key and group not in self._systems:
                    self._systems[group] = solver.system(group, self._weights, self._device)
                solved = solver.solve(group, self._systems.get(group))
                return [tensor.to("cpu", torch.bfloat16).flatten() for tensor in solved]

        # The libraries behind torch count threads partly for all, partly for each calling thread.
        one_each = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        with torch_threads(1), one_each as pool:
            yield from zip(groups, pool.map(solve, groups), strict=True)

    def _longest(self, group: tuple[str, ...]) -> float:
        shapes = [self._checkpoints[0].tensors[name].shape for name in group]
        cubic = sum(prod(shape) * max(shape) for shape in shapes) * len(self._checkpoints)
        to_fetch = sum(one.tensors[name].bytes_to_fetch for one in self._checkpoints for name in group)
        return STEP_SECONDS + _OPERATIONS * cubic / _SLOWEST + to_fetch / SLOWEST_FETCH

    def _weights(self, name: str) -> list[Tensor]:
        shape = self._checkpoints[0].tensors[name].shape
        whole = []
        for checkpoint in self._checkpoints:
            values = checkpoint.read(name).view(shape).to(torch.bfloat16)
            require_finite(checkpoint, name, values)
            whole.append(values.to(self._device))
        return whole
