"""Trials on disk: the file is whole after every trial that was added."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mergebench_ray.files import remove_leftovers, whole_file
from mergebench_ray.runs.columns import table_of
from mergebench_ray.runs.items import read_items, write_items
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, read_trials, trials_table


class TrialStore:
    """The trials of a run: ``trials.parquet`` and, per scored model and split, ``items/<digest>-<split>.parquet``.

    One process writes at a time (others read with `read_trials`); a trial that was appended survives the loss of
    every process and of power. Opening a folder reads back what is there and removes the unfinished files that a
    killed writer left.

    Raises:
        InputError: if ``trials.parquet`` is there but damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = RunFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        remove_leftovers(self._paths.items_folder)
        self._trials = read_trials(folder) if os.path.lexists(self._paths.trials_file) else []
        self._rows = [trial.flat() for trial in self._trials]

    def append(self, trial: Trial, items: Sequence[Mapping[str, Any]] = ()) -> None:
        """Add a finished trial; it and its items are on disk when this returns.

        Args:
            trial: a trial whose `key` is new.
            items: one row per scored item, all with the same keys; empty where the items of this model and split
                are on disk already.

        Raises:
            ValueError: if there is a trial with this key already.
            InputError: if the disk is full; the store is then as before.
        """
        if any(other.key == trial.key for other in self._trials):
            raise ValueError(f"trial {trial.key} is stored already")
        if items:
            write_items(self.folder, trial, items)
        self._write([*self._trials, trial])

    def extend(self, trials: Sequence[Trial]) -> None:
        """Add trials whose items are on disk already; all of them are there when this returns, or none.

        Raises:
            ValueError: two of them, or one of them and another, have one key.
            InputError: if the disk is full; the store is then as before.
        """
        together = [*self._trials, *trials]
        if len({trial.key for trial in together}) < len(together):
            raise ValueError("a trial is stored already")
        self._write(together)

    def replace(self, trial: Trial) -> None:
        """Put a trial in the place of the one with the same key, such as once its normalised average is known.

        Raises:
            KeyError: if there is none.
        """
        if all(other.key != trial.key for other in self._trials):
            raise KeyError(f"no trial {trial.key}")
        self._write([trial if other.key == trial.key else other for other in self._trials])

    def find(self, digest: str, items_digest: str, split: str) -> Trial | None:
        """The first trial of this model on all of these items, if it was scored before."""
        wanted = (digest, items_digest, split)
        scored = (t for t in self._trials if t.role != "stopped")
        return next((t for t in scored if (t.digest, t.items_digest, t.split) == wanted), None)

    def trials(self) -> list[Trial]:
        """All trials, in the order they were appended."""
        return list(self._trials)

    def items(self, trial: Trial) -> pa.Table:
        """The scored items of a trial, as `read_items` reads them."""
        return read_items(self.folder, trial)

    def table(self) -> pa.Table:
        """All trials as a table with flat columns, as in ``trials.parquet``."""
        return trials_table(self._trials)

    def _write(self, trials: list[Trial]) -> None:
        # Most are those of the time before.
        rows = [
            row if trial is before else trial.flat()
            for trial, before, row in zip_longest(trials, self._trials, self._rows)
        ]
        with whole_file(self._paths.trials_file) as temporary:
            pq.write_table(table_of(rows), temporary)
        self._trials, self._rows = trials, rows
