"""What the fields of all files share: unknown keys are refused, numbers are finite, texts are one line."""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MAX_TEXT = 4096  # as long as a path can be
_LARGEST = 2**63 - 1  # what Optuna's storages, JSON readers and kernels can hold

Split = Literal["validation", "final", "test"]
"""Which items of a task: the search compares candidates on the first, chooses among the best on the second, which are
held back from validation, and never sees the third."""
SPLITS: tuple[Split, ...] = get_args(Split)
DataSplit = Literal["validation", "test"]
"""Which split of a task's data items come from."""
DATA_SPLITS: tuple[DataSplit, ...] = get_args(DataSplit)


ModuleKind = Literal["attention", "mlp", "norm"]
"""What a tensor is part of, by its name: what mixes tokens, what scales vectors, and everything else."""
MODULE_KINDS: tuple[ModuleKind, ...] = get_args(ModuleKind)


def data_split_of(split: Split) -> DataSplit:
    """Where a split's items come from."""
    return "test" if split == "test" else "validation"


class Strict(BaseModel):
    """A part of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where only numbers are meant; they would count as 1 and 0."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds & {int, float} and not kinds & {bool, Any} and _holds_truth(value):
            raise ValueError("holds true or false, where a number is expected")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    return {annotation} if not inner else {kind for one in inner for kind in _kinds(one) if isinstance(kind, Hashable)}


def _holds_truth(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_truth, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _check_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("expected one line of printable characters, not empty")
    return text


Line = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_check_line)]
"""A reference, an id, a path, an address."""


def check_plain(value: Any) -> Any:
    """Return a value of no particular type if it can be stored and read back: plain, finite, of at most 64 bits.

    Raises:
        ValueError: saying what it holds.
    """
    if isinstance(value, dict):
        for key, one in value.items():
            check_plain(key)
            check_plain(one)
    elif isinstance(value, list | tuple):
        for one in value:
            check_plain(one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"holds {value}, where a finite number is expected")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise ValueError("holds an integer of more than 64 bits")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"holds a {type(value).__name__}")
    return value


Plain = Annotated[Any, AfterValidator(check_plain)]
"""A value whose type something else decides."""


def expanded(path: str) -> Path:
    """A path with ``~`` written out.

    Raises:
        ValueError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
