"""How base and specialists lie to each other: lengths, cosines and signs, of all tensors or of some."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Group:
    """Some tensors of all models.

    Attributes:
        products: float64 [K + 1, K + 1], inner products of the base and each task vector with one another.
        agreeing: float64 [K, K], entries that two specialists move in the same direction.
        opposed: float64 [K, K], in opposite ones.
    """

    products: NDArray[np.float64]
    agreeing: NDArray[np.float64]
    opposed: NDArray[np.float64]

    def __add__(self, other: Group) -> Group:
        return Group(self.products + other.products, self.agreeing + other.agreeing, self.opposed + other.opposed)

    @property
    def sizes(self) -> NDArray[np.float64]:
        """[K]: length of each task vector."""
        return np.asarray(np.sqrt(np.diag(self.products)[1:]))

    @property
    def drift(self) -> NDArray[np.float64]:
        """[K]: length of each task vector over that of the base; 0 where that is 0."""
        base = math.sqrt(self.products[0, 0])
        return np.asarray(self.sizes / base if base else np.zeros_like(self.sizes))

    @property
    def cosines(self) -> NDArray[np.float64]:
        """[K, K]: cosines between task vectors; 0 with one that is 0."""
        sizes = np.outer(self.sizes, self.sizes)
        return np.asarray(np.divide(self.products[1:, 1:], sizes, out=np.zeros_like(sizes), where=sizes > 0))

    @property
    def agreement(self) -> NDArray[np.float64]:
        """[K, K]: of the entries that two specialists both move, the share that they move alike; 0.5 of none."""
        both = self.agreeing + self.opposed
        return np.divide(self.agreeing, both, out=np.full_like(both, 0.5), where=both > 0)


@dataclass(frozen=True)
class Advice:
    """What weights say.

    Attributes:
        base: its reference.
        specialists: sorted names.
        whole: of all merged tensors.
        by_layer: of each layer, in order, then of what is beside them, if anything is.
        by_kind: of each kind of module: attention, mlp, norm.
        starts: coefficients to begin a search with, by rule and specialist that has moved.
        remarks: what is worth knowing, a sentence each.
        notes: rules that were applied where checkpoints differ.
    """

    base: str
    specialists: tuple[str, ...]
    whole: Group
    by_layer: Mapping[str, Group]
    by_kind: Mapping[str, Group]
    starts: Mapping[str, Mapping[str, float]]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it; groups as drift, cosines and agreement."""

        def group(one: Group) -> dict[str, Any]:
            return {
                "drift": dict(zip(self.specialists, one.drift.tolist(), strict=True)),
                "cosines": {
                    f"{self.specialists[a]}, {self.specialists[b]}": float(one.cosines[a, b]) for a, b in self.pairs()
                },
                "agreement": {
                    f"{self.specialists[a]}, {self.specialists[b]}": float(one.agreement[a, b]) for a, b in self.pairs()
                },
            }

        return {
            "base": self.base,
            "specialists": list(self.specialists),
            "whole": group(self.whole),
            "by_layer": {name: group(one) for name, one in self.by_layer.items()},
            "by_kind": {name: group(one) for name, one in self.by_kind.items()},
            "starts": {rule: dict(values) for rule, values in self.starts.items()},
            "remarks": list(self.remarks),
            "notes": list(self.notes),
        }

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Two specialists by their places, each pair once."""
        return combinations(range(len(self.specialists)), 2)
