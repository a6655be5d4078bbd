"""Errors of Ray workers, as the caller should see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from mergebench_ray.errors import InputError


@contextmanager
def input_errors() -> Iterator[None]:
    """Let an `InputError` raised inside a Ray worker leave the block as itself, not as Ray's error around it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        # A worker that waits for another one's answer raises Ray's error around Ray's error.
        while isinstance(cause, ray.exceptions.RayTaskError):
            cause = cause.cause
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from error
        raise
