"""What items ask and which answer is expected, in words: to be read beside the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypedDict

from mergebench_ray.tasks.scored_task import ROLLING, Item, ScoredTask


class QuestionRow(TypedDict):
    """An item's question. `expected` is empty where the task names no single answer, such as one that code checks."""

    domain: str
    task: str
    item: str
    prompt_digest: str
    prompt: str
    expected: str


def question_rows(tasks: Iterable[ScoredTask]) -> Iterator[QuestionRow]:
    """A row for each item of the tasks."""
    for task in tasks:
        for item in task.items:
            yield QuestionRow(
                domain=task.domain,
                task=task.entry,
                item=task.item_name(item),
                prompt_digest=item.prompt_digest,
                prompt=_prompt(item),
                expected=_expected(task, item),
            )


def _prompt(item: Item) -> str:
    """The context, followed by its choices if there are several."""
    contexts = [str(instance.args[0]) for instance in item.instances]
    if item.instances[0].request_type in ("generate_until", ROLLING):
        return contexts[0]
    choices = [str(instance.args[1]) for instance in item.instances]
    if len(set(contexts)) == 1:
        return "\n".join([contexts[0], *(f"[{number}]{choice}" for number, choice in enumerate(choices))])
    pairs = enumerate(zip(contexts, choices, strict=True))
    return "\n".join(f"[{number}] {context}{choice}" for number, (context, choice) in pairs)


def _expected(task: ScoredTask, item: Item) -> str:
    if task.task.OUTPUT_TYPE == ROLLING:
        return ""  # the text that is scored, which the prompt shows
    target = task.task.doc_to_target(item.doc)
    if task.task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int):
        return f"[{target}]"
    if isinstance(target, list):
        return " | ".join(map(str, target))
    return target if isinstance(target, str) else ""
