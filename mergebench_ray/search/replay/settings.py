"""What is replayed: a kind of race, or what it is compared with, and its settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergebench_ray.errors import InputError, nearest
from mergebench_ray.search.race.kinds import KINDS
from mergebench_ray.search.race.race import Race
from mergebench_ray.search.replay.rivals import Asha, FewerItems, Wilcoxon

RACES: dict[str, type[Race]] = {**KINDS, "fewer": FewerItems, "asha": Asha, "wilcoxon": Wilcoxon}
"""Name -> class."""

_LIMITS = {"p": (0.0, 0.5), "alpha": (0.0, 0.5), "share": (0.0, 1.0), "survivors": (2, 1000), "look": (1, 10**6)}


@dataclass(frozen=True)
class Setting:
    """A race and its settings.

    Attributes:
        kind: one of `RACES`.
        options: keyword arguments of its constructor.
    """

    kind: str
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it is written on the command line."""
        return ",".join([self.kind, *(f"{name}={value:g}" for name, value in self.options.items())])

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read KIND or KIND,KEY=VALUE,...

        Raises:
            InputError: an unknown kind or key, or a value that is out of range.
        """
        kind, *pairs = text.split(",")
        if kind not in RACES:
            raise InputError(f"--race {text!r:.120}: no such race; {nearest(kind, list(RACES))}")
        known = [name for name in inspect.signature(RACES[kind]).parameters if name in _LIMITS]
        options: dict[str, float] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key not in known or key in options:
                raise InputError(
                    f"--race {text!r:.120}: {key!r:.40} is no setting of {kind}; it has {', '.join(known)}"
                )
            options[key] = _number(text, key, value)
        return cls(kind, options)


def _number(text: str, key: str, value: str) -> float:
    low, high = _LIMITS[key]
    whole = isinstance(low, int)
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        number = float("nan")
    if not (low <= number <= high) or (number == low and not whole):
        raise InputError(
            f"--race {text!r:.120}: {key} must be {'a whole number from' if whole else 'above'} {low:g} "
            f"{'to' if whole else 'and at most'} {high:g}"
        )
    return number


DEFAULT_SETTINGS = tuple(
    map(
        Setting.parse,
        (
            *("none", "fewer,share=0.1", "fewer,share=0.2", "pool", "pool,p=0.05", "pool,p=0.2", "sparing"),
            *("halving", "asha", "wilcoxon"),
        ),
    )
)
"""What is replayed where nothing is asked for."""
