"""What the five generators share: the item, the splits, and how content is kept apart between them.

Everything here is a pure function of its arguments: `random.Random` seeded with a string gives the same numbers on
every platform and in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from mergebench_ray.digests import hashed_number

Item = dict[str, str]
Value = TypeVar("Value")

SPLIT_SIZES: Mapping[str, int] = {"train": 2400, "validation": 64, "test": 128}
_PATIENCE = 200


@dataclass(frozen=True)
class Draft:
    """One question before it has an id.

    Attributes:
        prompt: what the model is given, without trailing space.
        gold: an answer that scores 1.0, with the leading space that joins it to the prompt.
        check: what the domain's `score` needs to judge an answer (plain text or JSON).
    """

    prompt: str
    gold: str
    check: str


Kind = Callable[[Random, str], Draft]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text: a list of words that is quick to read and to write."""
    return tuple(text.split())


def split_of(key: str) -> str:
    """Return the one split that owns a piece of content: 70 % train, 10 % validation, 20 % test."""
    bucket = hashed_number(key, 4) % 100
    if bucket < 70:
        return "train"
    return "validation" if bucket < 80 else "test"


def share(pool: Sequence[Value], split: str) -> list[Value]:
    """Return the part of `pool` that belongs to `split`: six in ten train, two validation, two test; never shared."""
    places = {"train": (0, 1, 2, 5, 6, 7), "validation": (3, 8), "test": (4, 9)}[split]
    return [value for index, value in enumerate(pool) if index % 10 in places]


def build(domain: str, split: str, kinds: Mapping[str, Kind], size: int | None = None) -> list[Item]:
    """Draw items kind by kind in turn, each prompt once; a kind that has nothing new left drops out.

    Args:
        domain: prefix of every id.
        split: `train`, `validation` or `test`.
        kinds: name of each kind and the function that drafts one question of it.
        size: number of items; by default the size of the split.

    Raises:
        ValueError: if the kinds cannot give that many different prompts, or `split` is unknown.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLIT_SIZES)}")
    size = SPLIT_SIZES[split] if size is None else size
    rng = Random(f"{domain}/{split}")
    alive = dict(kinds)
    seen: set[str] = set()
    items: list[Item] = []
    while len(items) < size:
        if not alive:
            raise ValueError(f"{domain}: only {len(items)} different prompts in {split}, {size} asked for")
        for name, draw in list(alive.items()):
            draft = _fresh(draw, rng, split, seen)
            if draft is None:
                del alive[name]
                continue
            seen.add(draft.prompt)
            items.append(
                {
                    "id": f"{domain}-{split}-{len(items):04d}",
                    "kind": name,
                    "prompt": draft.prompt,
                    "gold": draft.gold,
                    "check": draft.check,
                }
            )
    return items[:size]


def _fresh(draw: Kind, rng: Random, split: str, seen: set[str]) -> Draft | None:
    for _ in range(_PATIENCE):
        draft = draw(rng, split)
        if draft.prompt not in seen:
            return draft
    return None
