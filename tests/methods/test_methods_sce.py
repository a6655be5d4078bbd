"""SCE's weights, at the scale of task vectors of fine-tuned models."""

from __future__ import annotations

import pytest
import torch

from mergebench_ray.kernels import Magnitudes
from mergebench_ray.methods import get_method, parse_parameters


class Counted:
    """Statistics of one tensor that all specialists move, each as far as one of these says."""

    def __init__(self, lengths: list[float]) -> None:
        generator = torch.Generator().manual_seed(0)
        vectors = [(torch.randn(10_000, generator=generator) * length).bfloat16() for length in lengths]
        self._magnitudes = {"w": [Magnitudes.of(vector) for vector in vectors]}

    def magnitudes(self) -> dict[str, list[Magnitudes]]:
        return self._magnitudes


@pytest.mark.parametrize(
    ("parameters", "lengths", "weights"),
    [
        ({}, [1e-4, 3e-4], [0.1, 0.9]),
        ({"alike_below": 1e-6}, [1e-4, 3e-4], [0.5, 0.5]),
        ({"alike_below": 1e-6}, [1e-2, 3e-2], [0.1, 0.9]),
        ({}, [0.0, 0.0], [0.5, 0.5]),
    ],
)
def test_specialists_weigh_by_their_squares_unless_told_that_these_are_too_small(
    parameters: dict[str, float], lengths: list[float], weights: list[float]
) -> None:
    prepared = get_method("sce").prepare(parse_parameters("sce", parameters), Counted(lengths))
    assert prepared["w"].weights == pytest.approx(weights, abs=0.01)
