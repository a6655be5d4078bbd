"""Which parts of a model a merge takes beside the layers."""

from __future__ import annotations

from pydantic import Field

from mergebench_ray.config.fields import Strict
from mergebench_ray.errors import InputError


class MergedParts(Strict):
    """What of a model is merged; the rest is the base's."""

    embeddings: bool = Field(
        default=False,
        description="Merge the embeddings and the output head, too, as mergekit does; else they are the base's, as in "
        "MergeBench.",
    )
    towers: bool = Field(
        default=True, description="Merge what sees and hears, and what brings that among the tokens; else the base's."
    )


DEFAULT_PARTS = MergedParts()


def check_parts(parts: MergedParts, method: str, *, sees_data: bool) -> None:
    """Refuse other parts than the usual ones for a method whose statistics of samples are of those alone.

    Raises:
        InputError: naming the method.
    """
    if sees_data and parts != DEFAULT_PARTS:
        raise InputError(
            f"merged: {method} takes statistics of samples with these hyper-parameters, and they are of the layers "
            "alone; leave 'merged' out, or choose another method"
        )
