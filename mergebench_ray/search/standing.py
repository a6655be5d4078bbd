"""What a candidate of a race has answered so far, and what that took: in memory, and on disk as it grows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem, GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.evaluation.ordered_scoring import Answered
from mergebench_ray.files import open_regular
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.scores import ItemRow


@dataclass(frozen=True)
class Cost:
    """What a candidate took, all its goes together.

    Attributes:
        merge_seconds: the fused passes.
        load_seconds: replacing engines' weights.
        spent: asking and grading.
        engines: indices of the engines that answered last.
        reused: earlier run -> items that were answered there.
    """

    merge_seconds: float = 0.0
    load_seconds: float = 0.0
    spent: Spent = field(default_factory=Spent)
    engines: tuple[int, ...] = ()
    reused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """A candidate between two goes.

    Attributes:
        version: the engines' weight version: its recipe's digest.
        items: place in the split -> what came of it, in the order in which they were asked.
        cost: what they took.
    """

    version: str
    items: GradedItems = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    @property
    def count(self) -> int:
        """How many of the order's first items are answered."""
        return len(self.items)

    @property
    def answered(self) -> Answered | None:
        """As another go needs it; None before the first."""
        return Answered(GradedShare(self.items, self.version, self.cost.spent), self.count) if self.items else None


class AnsweredFile:
    """A candidate's answers on disk: its recipe, a line for each item, and one for what they took after each go.

    Args:
        path: of the file.
        digest: of the recipe.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._file, self._digest = JsonLines(path), digest

    def add(self, items: GradedItems, cost: Cost | None = None, digests: Mapping[int, str] | None = None) -> None:
        """Keep further items, and what all of them took, where a go has ended.

        Args:
            items: place in the split -> what came of it.
            cost: of all items; None where the candidate goes on.
            digests: place -> digest of the item, and of all that its answer depends on but the weights.
        """
        lines = [_line(place, item, (digests or {}).get(place)) for place, item in items.items()]
        head = [] if self._file.path.exists() else [{"recipe": self._digest}]
        self._file.append([*head, *lines, *([{"cost": asdict(cost)}] if cost is not None else [])])

    def read(self) -> tuple[Standing, frozenset[int]]:
        """The candidate as far as it is on disk; of what was asked again, after an interruption, the first counts.

        Returns:
            the candidate, and after how many items it has stood still.

        Raises:
            InputError: the file is damaged, or another candidate's.
        """
        items: dict[int, GradedItem] = {}
        cost, stood = Cost(), set()
        for line in self._file.read():
            if "recipe" in line:
                self._check(line["recipe"])
            elif "cost" in line:
                found = line["cost"]
                spent = Spent(**found["spent"])
                cost = Cost(**{**found, "spent": spent, "engines": tuple(found["engines"])})
                stood.add(len(items))
            else:
                items.setdefault(line["place"], _item(line))
        return Standing(self._digest, items, cost), frozenset(stood)

    def _check(self, recipe: str) -> None:
        if recipe != self._digest:
            raise InputError(
                f"{self._file.path}: the answers of another candidate than the study has under this number; restore "
                "the study, or start a new run with another --out"
            )


def answered_recipe(path: Path) -> str | None:
    """Of which recipe a file's answers are; None where it does not say that yet."""
    with open_regular(path) as stream:
        line: bytes = stream.readline()
    head = json.loads(line) if line.endswith(b"\n") else {}
    return str(head["recipe"]) if isinstance(head, dict) and "recipe" in head else None


def read_answered(path: Path, recipe: str) -> dict[str, GradedItem]:
    """Digest -> item, of a candidate's answers; without those that an earlier version kept, which had no digests.

    Raises:
        InputError: the file is damaged, or another candidate's.
    """
    lines = JsonLines(path).read()
    if not lines or lines[0].get("recipe") != recipe:
        return {}
    found: dict[str, GradedItem] = {}
    for line in lines:
        if "digest" in line:
            try:
                found.setdefault(line["digest"], _item(line))
            except KeyError as error:
                raise InputError(f"{path}: damaged (a line lacks {error})") from error
    return found


def _line(place: int, item: GradedItem, digest: str | None) -> dict[str, Any]:
    value = None if item.value is ABSENT else float(item.value)
    line: dict[str, Any] = {"place": place, "value": value, "parsed": item.parsed, **item.row}
    return line if digest is None else line | {"digest": digest}


def _item(line: Mapping[str, Any]) -> GradedItem:
    value = ABSENT if line["value"] is None else line["value"]
    row = ItemRow(**{key: line[key] for key in ItemRow.__annotations__})  # type: ignore[typeddict-item]
    return GradedItem(value, row, line["parsed"])
