"""Which items a split gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergebench_ray.config.suite import TaskSettings
from mergebench_ray.tasks.protocol import in_split, key_text


@pytest.mark.parametrize("same", [[12, "12", 12.0, np.int64(12)], [[1, "2"], ["1", 2]], [{"a": "0"}, {"a": 0}]])
def test_a_key_is_one_however_the_data_write_it(same: list[Any]) -> None:
    assert len({key_text(value) for value in same}) == 1


def test_different_keys_stay_different() -> None:
    values = [12, "012", "12.5", 12.5, "", " 12", "a", True, None, "-0", -12, "1" * 5000]
    assert len({key_text(value) for value in values}) == len(values)


def test_translations_are_on_one_side_though_one_file_holds_numbers_and_the_other_texts() -> None:
    settings = TaskSettings(metric="acc", held_out_by="question")
    for number in range(200):
        sides = [in_split({"question": key}, settings, "validation", 0.2) for key in (number, str(number))]
        assert sides[0] == sides[1]
