"""What one part of a run takes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Place = Literal["gpu", "host"]


class Record(BaseModel):
    """Plain data that does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Need(Record):
    """Memory that one part of a run takes.

    Attributes:
        what: the part.
        count: how many of it there are.
        bytes_each: bytes that each takes.
        where: "gpu" or "host".
    """

    what: str
    count: int
    bytes_each: int
    where: Place
