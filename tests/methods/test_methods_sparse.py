"""Methods that drop entries, on single tensors that are unlike those of usual models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import naive_methods as naive
from mergebench_ray.kernels import Block, Magnitudes
from mergebench_ray.methods import TensorPlace, complete_parameters, get_method, parse_parameters
from mergebench_ray.methods.della import RowRanks

NAMES = ["a", "b"]
STEP = 2.0**-8


def merged(method: str, parameters: dict[str, Any], vectors: list[Tensor]) -> Tensor:
    """By the method itself, onto a base of zeros, float32 in the shape of the bf16 task vectors."""
    one = get_method(method)
    parsed = parse_parameters(method, complete_parameters(method, parameters, NAMES, 2))
    prepared = {"w": [Magnitudes.of(vector.flatten()) for vector in vectors]}
    scalars = one.scalars(parsed, prepared, TensorPlace("w", 0, 2), NAMES)
    block = Block(
        torch.zeros(vectors[0].numel()),
        [vector.float().flatten() for vector in vectors],
        torch.arange(vectors[0].numel(), dtype=torch.int32),
        [ranks.float().flatten() for ranks in RowRanks().of(vectors)],
        torch.tensor(0.0),
    )
    numbers = {
        name: torch.tensor(values, dtype=torch.int32 if "keys" in name else torch.float32)
        for name, values in scalars.items()
    }
    return one.merge_block(block, numbers, **one.options(parsed)).view(vectors[0].shape)


def by_definition(method: str, parameters: dict[str, Any], vectors: list[Tensor]) -> Tensor:
    completed = complete_parameters(method, parameters, NAMES, 2)
    specialists = {name: {"w": vector} for name, vector in zip(NAMES, vectors)}
    return getattr(naive, method)({"w": torch.zeros_like(vectors[0])}, specialists, **completed)["w"]


def few_magnitudes(zeros: float, seed: int) -> Tensor:
    """As the task vector of a norm: one or two steps of bf16, either way, or none."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(4096, generator=generator)
    steps = (drawn > zeros).float() + (drawn > zeros + 0.9 * (1 - zeros)).float()
    return (STEP * steps * torch.randn(4096, generator=generator).sign()).bfloat16()


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize(("density", "gamma"), [(0.2, 0.0), (0.25, 0.01), (0.5, 0.01), (1.0, 0.01)])
def test_breadcrumbs_rescaled_keep_a_tensors_length_where_most_magnitudes_are_equal(
    zeros: float, density: float, gamma: float
) -> None:
    vectors = [few_magnitudes(zeros, seed) for seed in range(2)]
    length = float(vectors[0].float().abs().sum())
    alone = {"density": density, "gamma": gamma, "rescale": True, "scaling_coef": 1.0, "weight": {"a": 1.0, "b": 0.0}}
    assert float(merged("breadcrumbs", alone, vectors).abs().sum()) == pytest.approx(length)
    both = alone | {"weight": {"a": 0.7, "b": 0.4}}
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        expected = by_definition(method, both, vectors).float()
        torch.testing.assert_close(merged(method, both, vectors), expected, rtol=2**-8, atol=0)


def random_vectors(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(0.01 * torch.randn(shape, generator=generator)).bfloat16() for _ in NAMES]


@pytest.mark.parametrize("density", [1e-3, 0.1, 0.3, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
def test_della_merges_at_every_density_whatever_epsilon(density: float, epsilon: float) -> None:
    vectors = random_vectors((64, 256))
    parameters = {"density": density, "epsilon": epsilon}
    for method in ("della", "della_linear"):
        own, defined = (how(method, parameters, vectors).float() for how in (merged, by_definition))
        torch.testing.assert_close(own, defined, rtol=2**-7, atol=1e-7)
    alone = {"weight": {"a": 1.0, "b": 0.0}, "scaling_coef": 1.0, "rescale": False} | parameters
    kept = (merged("della_linear", alone, vectors) != 0).float()
    assert float(kept.mean()) == pytest.approx(density, abs=0.015)
    if density == 0.3 and epsilon >= 0.3:  # the smallest of a row are never kept, the largest twice as often
        smallest = RowRanks().of(vectors)[0] == 0
        assert not kept[smallest].any()


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (5,), (2, 3, 4)])
@pytest.mark.parametrize("method", ["della", "della_linear", "breadcrumbs", "dare_ties"])
def test_tensors_of_any_shape_merge(method: str, shape: tuple[int, ...]) -> None:
    vectors = random_vectors(shape)
    own = merged(method, {"density": 0.7}, vectors)
    assert own.shape == shape
    torch.testing.assert_close(own, by_definition(method, {"density": 0.7}, vectors).float(), rtol=2**-7, atol=1e-7)


def test_the_entry_of_a_row_of_one_is_kept_as_often_as_density_says() -> None:
    alone = {"density": 0.3, "epsilon": 0.3, "weight": {"a": 1.0, "b": 0.0}}
    kept = merged("della_linear", alone, random_vectors((20_000, 1))) != 0
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.015)
