"""Shards of a bank in this very process, so that tests of what is computed need no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.shard import BankShard, ShardPlace
from mergebench_ray.bank.work import plan_work
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.kernels import BlockFunction, Scalars
from mergebench_ray.methods import complete_parameters, get_method, parse_parameters


class LocalBank:
    """The same shards and plans as `Bank`, called directly."""

    def __init__(
        self, base: Checkpoint, specialists: Mapping[str, Checkpoint], shards: int = 1, threads: int = 1
    ) -> None:
        self.layout = Layout.of(base)
        self.specialists: Sequence[str] = sorted(specialists)
        ordered = {name: specialists[name] for name in self.specialists}
        self.shards = [BankShard(base, ordered, self.layout, i, shards, threads, False) for i in range(shards)]
        self.places: list[ShardPlace] = [shard.load() for shard in self.shards]

    @property
    def num_entries(self) -> int:
        return self.layout.size + self.layout.streamed_size

    def magnitude_histograms(self) -> Tensor:
        return sum(torch.from_numpy(shard.histograms()) for shard in self.shards)

    def total(self, function: BlockFunction, scalars: Scalars) -> int:
        return sum(shard.total(function, scalars) for shard in self.shards)

    def merge(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        method = get_method(name)
        completed = complete_parameters(name, parameters, self.specialists, self.layout.num_layers)
        parsed = parse_parameters(name, completed)
        work = plan_work(self.layout, method, parsed, method.prepare(parsed, self), self.specialists, {})
        self.moved = sum(shard.merge(work).bytes_moved for shard in self.shards)
        merged = torch.cat([torch.tensor(shard.output_bits()) for shard in self.shards]).view(torch.bfloat16)
        return {t.name: merged[t.start : t.stop].view(t.shape) for t in self.layout.merged}
