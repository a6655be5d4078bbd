"""What a shard of the bank counts and adds up over what it holds, once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mergebench_ray.bank.inner_products import Products, products_of
from mergebench_ray.bank.layout import Layout, Overlap
from mergebench_ray.bank.magnitudes import Counted, Totals, count_each, count_values
from mergebench_ray.bank.passes import pass_key
from mergebench_ray.bank.shard_weights import ShardWeights
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.kernels import BlockFunction, Scalars, inner_products, magnitude_histogram
from mergebench_ray.steps import Steps


class ShardStatistics(ShardWeights):
    """Counts, sums and products of a shard's weights; arguments as for those."""

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        layout: Layout,
        index: int,
        shards: int,
        threads: int,
        use_gpu: bool,
        steps: Steps | None = None,
        streams: bool = False,
    ) -> None:
        super().__init__(base, specialists, layout, index, shards, threads, use_gpu, steps, streams)
        self._histograms: Tensor | None = None
        self._magnitudes: Counted | None = None
        self._totals: dict[str, int] = {}
        self._products: Products | None = None

    def histograms(self) -> NDArray[Any]:
        """Exact counts of this shard's magnitudes, int64 [K, 32768]; made once."""
        if self._histograms is None:
            self._load()
            # A GPU counts with all it has, and would have to hold what each thread needs beside the weights.
            one_each = ThreadPoolExecutor(self._threads if self._memory.type == "cpu" else 1)
            with self._passing(""), one_each as pool:
                total = torch.stack(list(pool.map(magnitude_histogram, self._vectors())))
            for _, vectors in self._streamed_blocks():
                total += torch.stack([magnitude_histogram(vector) for vector in vectors])
            self._histograms = total
        counts: NDArray[Any] = self._histograms.numpy()
        return counts

    def magnitudes(self) -> Counted:
        """Exact counts of the magnitudes of what this shard holds of each tensor; made once."""
        if self._magnitudes is None:
            self._load()
            windows = self._windows()
            one_each = ThreadPoolExecutor(self._threads if self._memory.type == "cpu" else 1)
            with self._passing(""), one_each as pool:
                counted = pool.map(lambda window: count_each(self._task_vectors[:, window[1]]), windows)
                self._magnitudes = [(name, one) for (name, _), one in zip(windows, counted, strict=True)]
        return self._magnitudes

    def inner_products(self) -> Products:
        """Inner products of base and task vectors over the blocks that begin in this shard; made once."""
        if self._products is None:
            self._load()
            torch.set_num_threads(self._threads)
            self._products = products_of(self._layout.overlaps(*self._range), self._multiply)
        return self._products

    def total(self, kernel: BlockFunction, scalars: Scalars) -> int:
        """Sum of an element-wise function over this shard's entries; made once for the same scalars."""
        key = pass_key(kernel, torch.float32) + json.dumps(scalars, sort_keys=True)
        if key not in self._totals:
            self._load()
            with self._passing(pass_key(kernel, torch.float32)):
                run = self._pass(kernel, scalars, torch.float32)
                total = run.total(self._base, self._vectors(), scalars, self._threads)
            for base, vectors in self._streamed_blocks():
                total += run.total(base, vectors, scalars, self._threads)
            self._totals[key] = total
        return self._totals[key]

    def values(self, kernel: BlockFunction, scalars: Mapping[str, Sequence[Scalars]]) -> Counted:
        """Magnitudes of an element-wise function over what this shard holds of each tensor, for each of its scalars."""
        self._load()
        found = []
        for name, window in self._windows():
            base, vectors = self._base[window], [vector[window] for vector in self._vectors()]
            with self._passing(pass_key(kernel, torch.bfloat16)):
                run = self._pass(kernel, scalars[name][0], torch.bfloat16)
                found.append((name, count_values(run, base, vectors, scalars[name], self._threads)))
        return found

    def totals(self, kernel: BlockFunction, scalars: Sequence[Scalars]) -> Totals:
        """Sums over what this shard holds of each tensor, for each of several scalars."""
        self._load()
        found = []
        for name, window in self._windows():
            base, vectors = self._base[window], [vector[window] for vector in self._vectors()]
            with self._passing(pass_key(kernel, torch.float32)):
                run = self._pass(kernel, scalars[0], torch.float32)
                found.append((name, [run.total(base, vectors, one, self._threads) for one in scalars]))
        return found

    def _multiply(self, block: Overlap) -> Tensor:
        vectors = self._block(block)
        with self._steps.step():
            return inner_products(vectors)
