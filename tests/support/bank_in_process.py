"""A bank in this very process, or none, so that tests of what is computed need no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergebench_ray.bank import Bank, Calibrator, StreamedBank
from mergebench_ray.checkpoints import Checkpoint, reserved_model


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


def merge_streamed(
    out: Path,
    base: Checkpoint,
    specialists: Mapping[str, Checkpoint],
    method: str,
    parameters: Mapping[str, Any],
    **options: Any,
) -> StreamedBank:
    """Write a merge window by window."""
    bank = StreamedBank(base, specialists, **options)
    with reserved_model(out, base) as model:
        bank.merge(method, parameters, model.files)
        model.texts = {"README.md": bank.recipe(method, parameters).to_yaml()}
    return bank


def write_from_bank(
    out: Path,
    base: Checkpoint,
    specialists: Mapping[str, Checkpoint],
    method: str,
    parameters: Mapping[str, Any],
    calibrator: Calibrator | None = None,
) -> None:
    """Write a merge of a bank that holds the models, as `merge_streamed` does."""
    from mergebench_ray.commands.merge import write_merged

    bank = LocalBank(base, specialists, shards=2, calibrator=calibrator).bank
    recipe = bank.recipe(method, parameters)
    bank.merge(recipe)
    write_merged(out, bank, base, {"README.md": recipe.to_yaml()})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
