"""Errors of Ray workers, as the caller should see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from mergebench_ray.errors import InputError, StoppedError

_UNKNOWN = ""
_TOLD_TO_END = "node was terminated expectedly"  # as by SIGTERM
_BLAMED: dict[str, str] = {}


@contextmanager
def input_errors() -> Iterator[None]:
    """Let an `InputError` or `StoppedError` of a Ray worker leave the block as itself, not as Ray's error around it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = first_cause(error)
        for kind in (InputError, StoppedError):
            if isinstance(cause, kind):
                raise kind(str(cause)) from error
        raise


def first_cause(error: BaseException) -> BaseException:
    """What an error was in the worker that it began in: one that waits for another's answer wraps Ray's error."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def lost_actor(error: BaseException) -> str | None:
    """Ray's id of the actor whose loss an error tells of, at whatever distance.

    Empty where it does not say which, as where what an actor answered was lost on the way; None of any other error.
    """
    cause = first_cause(error)
    if isinstance(cause, RayActorError) and not cause.actor_init_failed:
        return cause.actor_id or _UNKNOWN
    return _UNKNOWN if isinstance(cause, ObjectLostError) else None


def node_was_lost(error: BaseException) -> bool:
    """Whether an actor was lost with its whole node."""
    cause = first_cause(error)
    # An actor's owner is the driver, as seen by a cluster that has given up the driver's node.
    return isinstance(cause, ObjectLostError) or any(text in str(cause) for text in ("node has died", "owner has died"))


def was_preempted(error: BaseException) -> bool:
    """Whether an actor was lost with a node of which Ray was told before that it would be taken away."""
    cause = first_cause(error)
    return isinstance(cause, RayActorError) and cause.preempted


def blame(actor: str, reason: str) -> None:
    """Say why an actor is about to be lost; in this process `why_lost` says it, too."""
    _BLAMED[actor] = reason


def why_lost(error: BaseException) -> str:
    """Why an actor was lost, in a few words."""
    if (reason := _BLAMED.pop(lost_actor(error) or "", None)) is not None:
        return reason
    if was_preempted(error):
        return "its node was taken away"
    if node_was_lost(error):
        return "its node was told to end" if _TOLD_TO_END in str(first_cause(error)) else "its node is gone"
    text = str(first_cause(error)).lower()
    if "running low on memory" in text or "oomkiller" in text:
        return "Ray ended it as the node ran out of memory"
    return "its process was killed or crashed"
