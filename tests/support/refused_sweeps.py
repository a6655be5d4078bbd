"""Sweeps that are wrong in one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.search.checks import read_sweep


def refused_search(sweep: Path, setting: dict[str, Any]) -> str:
    """The one line by which a sweep is refused whose search section has these keys."""
    with pytest.raises(InputError) as error:
        read_sweep(sweep, {f"search.{key}": value for key, value in setting.items()})
    assert "\n" not in str(error.value)
    return str(error.value)
