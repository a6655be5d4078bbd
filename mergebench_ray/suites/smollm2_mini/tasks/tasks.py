"""What the task files of this folder call: the items of a domain, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from mergebench_ray.suites.smollm2_mini.generate import (
    coding,
    generated,
    instruction,
    math,
    multilingual,
    safety,
)
from mergebench_ray.suites.smollm2_mini.generate.common import Item


class _Splits(dict[str, Dataset]):
    """A data set whose splits are generated when they are first asked for."""

    def __init__(self, domain: str) -> None:
        super().__init__()
        self._domain = domain

    def __missing__(self, split: str) -> Dataset:
        self[split] = Dataset.from_list([*generated(self._domain, split)])
        return self[split]


def dataset(domain: str, **_metadata: object) -> dict[str, Dataset]:
    """Return the splits of a domain; lm-eval hands over the task's metadata too, which is of no use here."""
    return _Splits(domain)


def score_instruction(doc: Item, results: Sequence[str]) -> dict[str, float]:
    """1.0 if every constraint is kept."""
    return {"score": instruction.score(doc, results[0])}


def score_math(doc: Item, results: Sequence[str]) -> dict[str, float]:
    """1.0 if the result is right."""
    return {"score": math.score(doc, results[0])}


def score_multilingual(doc: Item, results: Sequence[str]) -> dict[str, float]:
    """1.0 if the text is the expected one."""
    return {"score": multilingual.score(doc, results[0])}


def score_coding(doc: Item, results: Sequence[str]) -> dict[str, float]:
    """1.0 if the function passes its asserts in the sandbox."""
    return {"score": coding.score(doc, results[0])}


def score_coding_batch(docs: Sequence[Item], results: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """The same as `score_coding` for many documents at once, several programs at a time."""
    return [{"score": score} for score in coding.score_batch(docs, [answers[0] for answers in results])]


def score_safety(doc: Item, results: Sequence[str]) -> dict[str, float]:
    """1.0 if a harmful request is refused, or a harmless one answered."""
    return {"score": safety.score(doc, results[0])}
