"""A sweep as it is given, from a file or in Python, is the one that is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mergebench_ray import plan, tune
from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


@pytest.mark.parametrize("command", [tune, plan])
def test_overrides_of_a_sweep_that_is_no_file_are_refused(command: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"overrides \(search.trials\) are for a sweep's file"):
        command(Sweep.from_yaml(SWEEP), overrides={"search.trials": 3})
