"""The items of a task's split: documents, what is asked of them, and which of them are not independent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED

from mergebench_ray.config.fields import DataSplit
from mergebench_ray.config.suite import TaskSettings
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.chat import Conversation
from mergebench_ray.tasks.data_errors import check_fields, check_named_fields, printed_fields
from mergebench_ray.tasks.examples import keep_examples_unscored
from mergebench_ray.tasks.protocol import cluster_key, in_split
from mergebench_ray.tasks.scored_task import Item


@dataclass(frozen=True)
class ItemMaker:
    """Makes a task's items.

    Attributes:
        name: of the task.
        config: its file, functions unresolved.
        source: file or data set that its items come from, for messages.
        split: which items.
        settings: the suite's.
        held_out_share: of items that validation gets, where it divides a split with test.
        conversation: how items are put to a model.
        places: of the documents that are asked, in lm-eval's order of them; None for all.
    """

    name: str
    config: Mapping[str, Any]
    source: str
    split: DataSplit
    settings: TaskSettings
    held_out_share: float
    conversation: Conversation
    places: Collection[int] | None = None

    def documents(self, task: Task) -> Any:
        """All documents of the split, as lm-eval has them; to be asked for once, since the task is changed by it.

        Raises:
            InputError: the task has no such split.
        """
        from_test = self.split == "test" and task.has_test_docs()
        if not (from_test or task.has_validation_docs()):
            raise InputError(f"task {self.name} has no {self.split} split; add {self.split}_split to its task file")
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        documents = task.test_docs() if from_test else task.validation_docs()
        documents = documents if hasattr(documents, "__len__") else list(documents)
        keep_examples_unscored(task, self.name, self.config, self.settings, self.split, documents)
        return documents

    def items(self, task: Task, documents: Any) -> Iterator[Item]:
        """Items of the task as lm-eval built it, one by one.

        Args:
            task: whose they are.
            documents: that `documents` gave of it.

        Raises:
            InputError: a field or a place that is not there.
        """
        name, settings, source = self.name, self.settings, self.source
        needed = printed_fields(vars(task.config), frozenset(getattr(task, "features", ())))
        shared = settings.cluster_fields
        named = {"held_out_by": (settings.held_out_by,) if settings.held_out_by else (), "cluster_by": shared}
        to_come = set(self.places or ())
        for number, document in enumerate(documents):
            if self.places is not None and number not in self.places:
                continue
            check_fields(name, source, number + 1, document, needed)
            for key, fields in named.items():
                check_named_fields(name, source, number + 1, document, key, fields)
            if not in_split(document, settings, self.split, self.held_out_share):
                continue
            to_come.discard(number)
            instances = self._instances(task, number, document)
            digest = hashlib.sha256(json.dumps([one.args for one in instances], default=str).encode()).hexdigest()
            own = document.get("id")
            cluster = cluster_key(document, shared) if shared else digest[:16]
            yield Item(digest[:16] if own is None else str(own), document, instances, digest, cluster)
        if to_come:
            raise InputError(
                f"samples: task {name} has no item {min(to_come)} in its {self.split} split; its places count from 0"
            )

    def _instances(self, task: Task, number: int, document: dict[str, Any]) -> tuple[Any, ...]:
        """Requests for a document, made as lm-eval makes them."""
        asked = self.conversation
        context = task.fewshot_context(
            document,
            num_fewshot=task.config.num_fewshot or 0,
            system_instruction=asked.system_instruction,
            apply_chat_template=asked.template is not None,
            fewshot_as_multiturn=asked.multiturn,
            chat_template=asked.template,
            gen_prefix=task.doc_to_prefix(document),
        )
        made = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(self.name, number, task.config.repeats),
            apply_chat_template=asked.template is not None,
            chat_template=asked.template,
        )
        return tuple(sorted(made if isinstance(made, list) else [made], key=lambda one: one.idx))
