"""A sweep as it is given, from a file or in Python, is the one that is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mergebench_ray import plan, tune
from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.search.checks import check_sweep

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


@pytest.mark.parametrize("command", [tune, plan])
def test_overrides_of_a_sweep_that_is_no_file_are_refused(command: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"overrides \(search.trials\) are for a sweep's file"):
        command(Sweep.from_yaml(SWEEP), overrides={"search.trials": 3})


ASHA = {"kind": "ASHAScheduler", "scheduler_options": {"grace_period": 40}}


def sweep_with(**search: object) -> Sweep:
    methods = {"ties": {"density": {"low": 0.1, "high": 0.5}}}
    content = {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search}
    return Sweep.model_validate(content)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"race": "pol"}, r"search.race.kind = 'pol': no such race; did you mean 'pool'"),
        ({"race": {"kind": "halving", "p": 0.1}}, "search.race.p: no setting of halving; it has in_flight, look"),
        ({"race": {"p": 0.1}}, "search.race.p: no setting of auto; it has none; name a kind such as pool"),
        ({"race": {"kind": "none", "look": 5}}, "search.race.look: no setting of none; it has in_flight"),
        ({"race": {"kind": "pool", "alpha": 0.1}}, "search.race.alpha: no setting of pool"),
        ({"race": {"kind": "pool", "scheduler_options": {"max_t": 3}}}, "pool is no scheduler of Ray Tune"),
        ({"race": "exact", "objective": "worst_domain"}, "race exact: objective worst_domain is no weighted mean"),
        ({"race": "halving", "constraints": {"math": ">= 0.9"}}, "does not know of search.constraints"),
        ({"race": "ASHAScheduler", "constraints": {"math": ">= 0.9"}}, "choose pool or sparing, or leave search.race"),
        ({"race": "HyperBandScheduler"}, "no scheduler of Ray Tune that stops trials and does nothing else"),
        ({"race": {"kind": "ASHAScheduler", "p": 0.1}}, "search.race.p: no setting of ASHAScheduler; it has look"),
        (
            {"race": {"kind": "ASHAScheduler", "scheduler_options": {"rungs": 3}}},
            "search.race.scheduler_options: ASHAScheduler does not take them",
        ),
        ({"race": {"kind": "ASHAScheduler", "scheduler_options": {"mode": "min"}}}, "scheduler_options.mode: the race"),
        ({"race": {"kind": "ASHAScheduler", "scheduler_options": {"max_t": 9}}}, "scheduler_options.max_t: the race"),
        ({"race": {"kind": "MedianStoppingRule", "scheduler_options": {"hard_stop": False}}}, "would pause trials"),
    ],
)
def test_a_race_that_cannot_be_is_refused_before_anything_starts(search: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sweep(sweep_with(**search))


@pytest.mark.parametrize(
    "race", ["auto", "none", "pool", "sparing", "halving", "exact", {"kind": "pool", "p": 0.2}, ASHA]
)
def test_a_race_that_can_be_is_accepted(race: object) -> None:
    check_sweep(sweep_with(race=race))
