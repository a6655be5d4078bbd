"""A task as it is scored: the items of one split, and which of its metrics counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from mergebench_ray.scores import counted_label
from mergebench_ray.tasks.task_files import BatchScorer, VerdictScorer

ROLLING = "loglikelihood_rolling"
"""lm-eval's name of requests for the likelihood of a whole text."""


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
        id: the document's own `id`, otherwise a digest of its prompt: stable from run to run.
        doc: the document, as the task's metrics expect it.
        instances: lm-eval's requests: one, or one per choice.
        prompt_digest: SHA-256 of everything that is asked.
        cluster: shared by items that are not independent, in whatever task: those that ask the same, or have the same
            values in the fields that the suite's settings name.
    """

    id: str
    doc: dict[str, Any]
    instances: tuple[Instance, ...]
    prompt_digest: str
    cluster: str


@dataclass(frozen=True)
class JudgedBy:
    """What of a task its judge is shown, and what the verdicts come to.

    Attributes:
        judge: name of the judge.
        digest: of everything that its verdicts depend on.
        field: field of the document that holds the request, as it was without any template around it.
        scorer: from documents and verdicts, None where an answer of the judge did not parse, to metrics.
    """

    judge: str
    digest: str
    field: str
    scorer: VerdictScorer


@dataclass(frozen=True)
class ScoredTask:
    """An lm-eval task, the metric that counts, and the items of one split.

    Attributes:
        metric: name of the metric that counts.
        one_minus: whether 1 - metric is what counts.
        filter_name: the answer filter whose result it is taken from.
        judged: the judge whose verdicts the metric needs; None for most tasks.
        num_documents: of the split in lm-eval, asked or not.
        batch_scorer: grades all items at once in place of the task's `process_results`; None for most tasks.
        higher_is_better: whether what counts is better when higher.
        notes: what is counted otherwise than the task file says, a line each.
        file: the task file; None for a task that has none.
        group: lm-eval's group or tag that the suite names in its place; empty where it names the task itself.
        pooled: whether it counts as a part of the group, all parts by their numbers of items, and not by itself.
    """

    domain: str
    name: str
    metric: str
    one_minus: bool
    filter_name: str
    judged: JudgedBy | None
    task: Task
    items: tuple[Item, ...]
    num_documents: int
    batch_scorer: BatchScorer | None
    higher_is_better: bool = True
    notes: tuple[str, ...] = ()
    file: Path | None = None
    group: str = ""
    pooled: bool = False

    @property
    def entry(self) -> str:
        """What it counts as in its domain: the group that it is a part of, or itself."""
        return self.group if self.pooled else self.name

    def item_name(self, item: Item) -> str:
        """What an item is called among those of the entry."""
        return f"{self.name}/{item.id}" if self.pooled else item.id

    @property
    def counted(self) -> str:
        """What counts, in words."""
        return counted_label(self.metric, self.one_minus, self.higher_is_better)


def notes_of(tasks: Iterable[ScoredTask]) -> list[str]:
    """What is counted otherwise than task files say, a line each."""
    return list(dict.fromkeys(note for task in tasks for note in task.notes))


def items_digest(tasks: Iterable[ScoredTask], *, directions: bool = True) -> str:
    """SHA-256 of what is asked and what it is graded against: equal digests, comparable scores.

    Without `directions` it is that of earlier versions, to which one_minus made no difference.
    """
    digest = hashlib.sha256()
    for task in tasks:
        for item in task.items:
            row = described_item(task, item, task.counted if directions else task.metric)
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def described_item(task: ScoredTask, item: Item, counted: str) -> tuple[str, ...]:
    """What is asked with an item and what it is graded against, as digests take it."""
    graded = json.dumps(item.doc, sort_keys=True, default=str)
    judge = (task.judged.digest,) if task.judged else ()
    group = (task.group,) if task.pooled else ()
    return (task.domain, task.name, counted, task.filter_name, item.id, item.prompt_digest, graded, *judge, *group)
