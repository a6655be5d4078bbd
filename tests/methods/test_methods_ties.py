"""TIES where the trimmed entries cancel out, or nearly do."""

from __future__ import annotations

import pytest
import torch

from mergebench_ray.kernels import Pass, Segment
from mergebench_ray.methods import TensorPlace, get_method, parse_parameters
from mergebench_ray.methods.ties import SMALLEST, Prepared

NAMES = ["a", "b"]


@pytest.mark.parametrize("merge_func", ["sum", "mean", "max"])
@pytest.mark.parametrize(("majority", "cancelled"), [(1, 0.5), (0, 0.0), (-1, -1.0)])
def test_entries_that_cancel_out_follow_the_majority(merge_func: str, majority: int, cancelled: float) -> None:
    parameters = parse_parameters("ties", {"scaling_coef": {"a": 1.0, "b": 2.0}, "merge_func": merge_func})
    method = get_method("ties")
    scalars = method.scalars(parameters, Prepared([SMALLEST, SMALLEST], majority), TensorPlace("w", 0, 1), NAMES)
    # Cancelled; the least that a sum can be beside zero, of either sign; nothing at all.
    first = torch.tensor([0.5, 2 * SMALLEST, -2 * SMALLEST, 0.0]).bfloat16()
    second = torch.tensor([-0.5, -SMALLEST, SMALLEST, -0.0]).bfloat16()
    out = torch.empty_like(first)
    merge = Pass(method.kernel(parameters), 2, scalars, torch.bfloat16, torch.device("cpu"), compiled=False)
    merge.run(torch.zeros_like(first), [first, second], [Segment(0, 4, 0, scalars)], out, threads=1)
    assert out.tolist() == [cancelled, 2 * SMALLEST, -2 * SMALLEST, 0.0]
