"""Few-shot examples: drawn as lm-eval draws them, but none of them is an item that is scored on either split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Template
from lm_eval.api.task import Task
from lm_eval.utils import env as template_environment

from mergebench_ray.config.fields import DATA_SPLITS
from mergebench_ray.config.suite import TaskSettings
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.protocol import data_split

_INSTEAD = "name another fewshot_split in the task file, list examples in fewshot_config.samples, or set num_fewshot: 0"


def scored_splits(config: Mapping[str, Any], settings: TaskSettings) -> list[str]:
    """The data set's own names of the splits whose items are scored, on validation or on test."""
    found = (data_split(config, settings, split) for split in DATA_SPLITS)
    return list(dict.fromkeys(split for split in found if split is not None))


def check_examples(name: str, config: Mapping[str, Any], scored: Sequence[str]) -> None:
    """Refuse what the task file alone shows: examples that come from a scored split.

    Args:
        name: of the task.
        config: the task file, with what the suite changes.
        scored: as `scored_splits` says.

    Raises:
        InputError: if all examples would be scored items.
    """
    count = config.get("num_fewshot") or 0
    if not isinstance(count, int) or count < 0:
        raise InputError(f"task {name}: num_fewshot: {count}: give an integer from 0")
    own = config.get("fewshot_config") or {}
    if not count or not isinstance(own, Mapping):
        return
    drawn_from = own.get("split", config.get("fewshot_split"))
    if drawn_from is None and own.get("samples") is None:
        # Without a split of their own, lm-eval takes examples from the first that there is.
        splits = (config.get(f"{kind}_split") for kind in ("training", *DATA_SPLITS))
        drawn_from = next((split for split in splits if split is not None), None)
    if drawn_from is not None and str(drawn_from) in map(str, scored):
        raise InputError(
            f"task {name}: its few-shot examples come from the split {drawn_from}, whose items are scored; {_INSTEAD}"
        )


class UnscoredExamples:
    """Stands in for a task's sampler: what it draws is checked against the scored items, and drawn again without them.

    An example is a scored item if it asks the same: equal text, and equal choices where there are any.

    Args:
        task: whose sampler it takes the place of.
        name: of the task.
        scored: documents of both splits.
    """

    def __init__(self, task: Any, name: str, scored: Iterable[dict[str, Any]]) -> None:
        self._task = task
        self._name = name
        self._sampler = task.sampler
        self._scored = {_tried(self._question, document, None, None) for document in scored} - {None}
        self._known: dict[int, bool] = {}

    def sample(self, n: int, eval_doc: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """`n` examples, as lm-eval's own sampler draws them.

        Raises:
            InputError: if there are fewer that are not scored.
        """
        try:
            drawn = self._sampler.sample(n, eval_doc=eval_doc)
            if any(map(self._is_scored, drawn)):
                self._sampler.replace_df([document for document in self._sampler.df if not self._is_scored(document)])
                drawn = self._sampler.sample(n, eval_doc=eval_doc)
        except (AssertionError, ValueError) as error:
            there = len(self._sampler.df)
            raise InputError(
                f"task {self._name}: {n} few-shot examples are asked for, but there are {there} that are not scored "
                f"items (lm-eval: {error}); {_INSTEAD}"
            ) from error
        if any(map(self._is_scored, drawn)):
            raise InputError(f"task {self._name}: its sampler draws scored items as few-shot examples; {_INSTEAD}")
        return list(drawn)

    def _is_scored(self, example: dict[str, Any]) -> bool:
        key = id(example)
        if key not in self._known:
            own = self._task.fewshot_cfg
            ways = [(own.doc_to_text, own.doc_to_choice), (None, None)]
            self._known[key] = any(_tried(self._question, example, *way) in self._scored for way in ways)
        return self._known[key]

    def _question(self, document: dict[str, Any], doc_to_text: Any, doc_to_choice: Any) -> tuple[str, str]:
        task = self._task
        text = _filled(task, task.doc_to_text, doc_to_text or task.config.doc_to_text, document)
        choices = doc_to_choice or task.config.doc_to_choice
        return text.strip(), "" if choices is None else _filled(task, task.doc_to_choice, choices, document)


def _filled(task: Any, fill: Callable[..., Any], template: Any, document: dict[str, Any]) -> str:
    """What lm-eval's `fill` makes of a template, as text; it compiles templates anew for each of thousands of items."""
    if isinstance(template, str) and template not in task.features and task.prompt is None:
        return _compiled(template).render(**document)
    return str(fill(document, template))


@functools.cache
def _compiled(template: str) -> Template:
    compiled: Template = template_environment.from_string(template)
    return compiled


def keep_examples_unscored(
    task: Task,
    name: str,
    config: Mapping[str, Any],
    settings: TaskSettings,
    split: str,
    asked: Iterable[dict[str, Any]],
) -> None:
    """Let a task with few-shot examples draw none that is scored.

    Args:
        task: as lm-eval built it.
        name: of the task.
        config: the task file as it stands.
        settings: the suite's.
        split: the one that is asked, "validation" or "test".
        asked: its documents.

    Raises:
        InputError: if that cannot be known of this task.
    """
    made: Any = task
    if not made.config.num_fewshot:
        return
    if not hasattr(task, "sampler"):
        if not task.has_training_docs():
            raise InputError(f"task {name}: its few-shot examples would be items that are scored; {_INSTEAD}")
        return
    own_split = data_split(config, settings, split)
    others = [other for other in scored_splits(config, settings) if other != own_split]
    made.sampler = UnscoredExamples(task, name, [*asked, *_documents(made, others)])
    if split == "test" and "class" not in config:  # a class says itself what lm-eval looks at
        _draw_as_the_file_stands(made, config)


def _draw_as_the_file_stands(task: Any, config: Mapping[str, Any]) -> None:
    """Draw an example more where lm-eval does, in case an item is among its own: the draws that follow depend on it.

    All that lm-eval looks at is whether the examples' split is the one that it calls test; a suite may rename that one.
    """
    drawn_from = (config.get("fewshot_config") or {}).get("split", config.get("fewshot_split"))
    draws_one_more = drawn_from == config.get("test_split")
    now = task.fewshot_cfg.split
    if (now == task.config.test_split) != draws_one_more:
        task.set_config("test_split", now if draws_one_more else f"not {now}")


def _documents(task: Any, splits: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Documents of splits, of those that the task's data have."""
    for split in splits:
        try:
            rows = task.dataset[split]
        except (LookupError, InputError):
            continue  # what is not there is not scored either
        yield from rows if task.config.process_docs is None else task.config.process_docs(rows)


def _tried(function: Any, *arguments: Any) -> Any:
    """What a task's function gives; None where it fails, since such a document cannot be asked."""
    try:
        return function(*arguments)
    except Exception:  # a task file's own functions and templates
        return None
