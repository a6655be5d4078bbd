"""Scored items of a run's models, and what the items ask, in Parquet files beside its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mergebench_ray.files import whole_file
from mergebench_ray.runs.parquet import read_parquet
from mergebench_ray.runs.run_folder import RunFolder


class Scored(Protocol):
    """What a model's items are found by, such as a trial."""

    @property
    def digest(self) -> str:
        """Of the model."""

    @property
    def split(self) -> str:
        """That it was scored on."""


def write_items(folder: Path | str, trial: Scored, items: Sequence[Mapping[str, Any]]) -> None:
    """Keep the scored items of a model on a split: a row each, all with the same keys."""
    with whole_file(RunFolder(folder).items_file(trial.digest, trial.split)) as temporary:
        pq.write_table(pa.Table.from_pylist([dict(item) for item in items]), temporary)


def read_items(folder: Path | str, trial: Scored) -> pa.Table:
    """The scored items of one of a run's trials, a row each; in runs of before there were clusters, each prompt is one.

    Raises:
        FileNotFoundError: if they are not on disk.
        InputError: if they are damaged.
    """
    text, number = pa.string(), pa.float64()
    items = read_parquet(
        RunFolder(folder).items_file(trial.digest, trial.split),
        {"domain": text, "task": text, "item": text, "prompt_digest": text, "score": number},
        {"answer": text, "judgement": text, "cluster": text},
    )
    return items if "cluster" in items.column_names else items.append_column("cluster", items["prompt_digest"])


def write_questions(folder: Path, split: str, questions: Sequence[Mapping[str, Any]]) -> None:
    """Keep what the items of a split ask, once for all models of a run.

    Args:
        folder: the run's.
        split: the split.
        questions: a row per item: domain, task, item, prompt_digest, prompt, expected.
    """
    path = RunFolder(folder).questions_file(split)
    if not path.exists():
        with whole_file(path) as temporary:
            pq.write_table(pa.Table.from_pylist([dict(question) for question in questions]), temporary)


def read_questions(folder: Path | str, split: str) -> pa.Table | None:
    """What `write_questions` wrote; None for a run without.

    Raises:
        InputError: if it is damaged.
    """
    columns = ("domain", "task", "item", "prompt_digest", "prompt", "expected")
    try:
        return read_parquet(RunFolder(folder).questions_file(split), dict.fromkeys(columns, pa.string()))
    except FileNotFoundError:
        return None
