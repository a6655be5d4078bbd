"""A bank in this very process, so that tests of what is computed need no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mergebench_ray.bank import Bank
from mergebench_ray.bank.bank import Calibrator
from mergebench_ray.checkpoints import Checkpoint


class LocalBank:
    """Merges to plain dictionaries.

    Attributes:
        bank: the bank.
        moved: bytes that the last merge read and wrote.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        shards: int = 1,
        threads: int = 1,
        calibrator: Calibrator | None = None,
    ) -> None:
        self.bank = Bank.load(base, specialists, shards=shards, threads=threads, in_process=True, calibrator=calibrator)
        self.moved = 0

    def merge(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        self.moved = self.bank.merge(self.bank.recipe(name, parameters)).bytes_moved
        return {name: tensor.clone() for name, tensor in self.bank.tensors()}
