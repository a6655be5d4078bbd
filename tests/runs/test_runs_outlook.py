"""What more candidates would bring, from those that were tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

import pytest

from mergebench_ray.runs.outlook import NEXT, outlook
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import ObjectiveEstimate, ObjectiveValue


def candidates(values: Sequence[float], *, minimised: bool = False) -> list[Trial]:
    return [
        Trial(
            "candidate", "ties", "validation", f"{n}", "x", n, objectives={"o": ObjectiveValue(one, 0.1, 0, minimised)}
        )
        for n, one in enumerate(values)
    ]


def test_of_a_few_candidates_nothing_is_said() -> None:
    assert outlook(candidates([0.1] * 7)) is None


def test_what_the_latest_have_improved_is_a_fact() -> None:
    found = outlook(candidates([0.5] + [0.1] * NEXT + [0.6]))
    assert found is not None
    assert found.latest == pytest.approx(0.1)
    assert outlook(candidates([0.5] * NEXT)).latest is None  # type: ignore[union-attr]


def test_candidates_that_are_all_alike_promise_nothing() -> None:
    found = outlook(candidates([0.5] * 20))
    assert found is not None
    assert (found.gain, found.error) == (0, 0)
    assert "by about 0.000 ± 0.000" in str(found)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda source: source.gauss(0, 1), id="normal"),
        pytest.param(lambda source: -sum((source.random() - 0.5) ** 2 for _ in range(5)), id="with a bound"),
    ],
)
def test_on_average_it_promises_what_more_draws_bring(draw: Callable[[random.Random], float]) -> None:
    source, promised, brought, error = random.Random(0), [], [], []
    for _ in range(600):
        values = [draw(source) for _ in range(40 + NEXT)]
        found = outlook(candidates(values[:40]))
        assert found is not None
        promised.append(found.gain)
        error.append(found.error)
        brought.append(max(values) - max(values[:40]))
    assert mean(promised) == pytest.approx(mean(brought), rel=0.25)
    assert mean(error) == pytest.approx(mean((one - mean(brought)) ** 2 for one in brought) ** 0.5, rel=0.4)


def test_lower_is_better_where_the_objective_says_so() -> None:
    values = [0.1 * (n % 7) for n in range(30)] + [-0.5]
    up, down = outlook(candidates([-one for one in values])), outlook(candidates(values, minimised=True))
    assert up == down
    assert up is not None
    assert up.latest == pytest.approx(0.5)


def test_of_a_front_nothing_is_said() -> None:
    rows = [replace(one, objectives={**one.objectives, "p": ObjectiveValue(0.1)}) for one in candidates([0.5] * 20)]
    assert outlook(rows) is None


def test_stopped_candidates_count_with_what_they_would_have_come_to() -> None:
    rows = candidates([0.1 * (n % 7) for n in range(30)])
    stopped = [
        Trial(
            "stopped", "ties", "validation", f"{n}", "x", n, estimate=ObjectiveEstimate(one.objective.value, 0.1, 5, 9)
        )
        for n, one in enumerate(rows[:-1])
    ]
    assert outlook([*stopped, rows[-1]]) == outlook(rows)
