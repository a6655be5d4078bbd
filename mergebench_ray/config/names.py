"""The rule for names that users choose: of specialists, domains, judges and suites."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from mergebench_ray.errors import InputError

MAX_LENGTH = 100
# Names end up in file names, in options (NAME=REF, A,B), in columns and in Tune's keys, which it takes apart at "/".
_INSIDE = frozenset("._-+@() ")
AVERAGE = "plain average"
"""Of the specialists, each counted alike: what a search is compared with."""
_TAKEN = frozenset({"all", "average", "base", "forgetting", AVERAGE})


def check_name(name: str) -> str:
    """Return a name that follows the rule.

    Raises:
        ValueError: saying the rule, or that tables and options use this name for something else.
    """
    letters = all(unicodedata.category(one)[0] in "LMN" or one in _INSIDE for one in name)
    if not (letters and name[:1].isalnum() and name == name.strip() and len(name) <= MAX_LENGTH):
        raise ValueError(
            f"a name is 1 to {MAX_LENGTH} letters, digits, or . _ - + @ ( ) and spaces between them, and begins with "
            "a letter or digit"
        )
    if name.casefold() in _TAKEN:
        raise ValueError(f"this name stands for something else ({', '.join(sorted(_TAKEN))}); choose another")
    return name


Name = Annotated[str, AfterValidator(check_name)]


def require_names(names: Iterable[str], what: str) -> None:
    """Check names that come from a caller, not from a file.

    Raises:
        InputError: naming `what` and the name.
    """
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            raise InputError(f"{what} {name!r:.120}: {error}") from None
