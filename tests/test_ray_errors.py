from __future__ import annotations

import pytest
import ray

from mergebench_ray.errors import InputError, StoppedError
from mergebench_ray.ray_errors import input_errors, why_lost


def around(cause: Exception) -> Exception:
    """What `ray.get` raises for a worker that raised this."""
    error = ray.exceptions.RayTaskError("work", "Traceback (most recent call last):\n  ...\n", cause)
    found: Exception = error.as_instanceof_cause()
    return found


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", [InputError, StoppedError])
def test_a_line_for_people_of_a_worker_behind_others_is_that_line(
    kind: type[InputError] | type[StoppedError], depth: int
) -> None:
    error: Exception = kind("task t: wrong")
    for _ in range(depth):
        error = around(error)
    with pytest.raises(kind) as found, input_errors():
        raise error
    assert str(found.value) == "task t: wrong"


def test_other_errors_of_workers_stay_what_they_are() -> None:
    error = around(around(ValueError("a fault")))
    with pytest.raises(ray.exceptions.RayTaskError) as found, input_errors():
        raise error
    assert found.value is error


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("because its node has died. the actor's node was terminated expectedly: received SIGTERM", "told to end"),
        ("because its node has died. the actor's node was terminated unexpectedly: health check failed", "gone"),
    ],
)
def test_a_node_that_was_told_to_end_is_told_from_one_that_died(said: str, reason: str) -> None:
    assert why_lost(ray.exceptions.RayActorError("of-that-node", said)).endswith(reason)
