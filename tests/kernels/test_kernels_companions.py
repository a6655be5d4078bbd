"""A pass that reads one more array per specialist: the same bits compiled, eagerly and for every cut."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mergebench_ray.kernels import Block, BlockFunction, Pass, Segment

CPU = torch.device("cpu")
LENGTH = 140_003
NUM_SPECIALISTS = 3


def weighted_mean(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """Mean of the task vectors, weighted with the companions."""
    total, weights = torch.zeros_like(block.base), torch.zeros_like(block.base)
    for vector, weight in zip(block.task_vectors, block.companions, strict=True):
        total, weights = total + weight * vector, weights + weight
    return block.base + total / weights.clamp(min=1e-20)


def drawn(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """Companions where the position is odd, scaled; both ways of reading beside the arrays at once."""
    odd = (block.position & 1).float()
    return block.base + odd * (block.companions[0] + scalars["scale"][0] * block.companions[-1])


def arrays() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base, *vectors = (torch.randn(LENGTH, generator=generator).bfloat16() for _ in range(NUM_SPECIALISTS + 1))
    return base, torch.stack(vectors)


def companions(dtype: torch.dtype) -> Tensor:
    """Masks, or small positive numbers over many powers of two, among them zeros and denormals."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(NUM_SPECIALISTS, LENGTH, generator=generator)
    if dtype != torch.float32:
        return (numbers > 0).to(dtype)
    return torch.where(numbers > 2, 0.0, torch.exp(8 * numbers - 60))


def merge(run: Pass, dtype: torch.dtype, scalars: dict[str, list[float]], cuts: list[int], threads: int = 1) -> Tensor:
    base, vectors = arrays()
    out = torch.empty(LENGTH, dtype=torch.bfloat16)
    segments = [Segment(start, stop, start, scalars) for start, stop in itertools.pairwise(cuts)]
    run.run(base, vectors, segments, out, threads, companions=companions(dtype))
    return out.view(torch.int16)


@pytest.mark.compiler
@pytest.mark.usefixtures("compiled_here")
@pytest.mark.parametrize(("function", "dtype"), [(weighted_mean, torch.float32), (drawn, torch.bool)])
def test_companions_give_the_same_bits_compiled_eagerly_and_for_every_cut(function: object, dtype: torch.dtype) -> None:
    positions = function is drawn
    scalars = {"scale": [0.7]} if positions else {}
    kernel = BlockFunction(function, uses_position=positions, companion=dtype)  # type: ignore[arg-type]
    by_compiler = Pass(kernel, NUM_SPECIALISTS, scalars, torch.bfloat16, CPU)
    eager = Pass(kernel, NUM_SPECIALISTS, scalars, torch.bfloat16, CPU, compiled=False)
    assert by_compiler.is_compiled

    base, vectors = arrays()
    position = torch.arange(LENGTH, dtype=torch.int32)
    block = Block(base.float(), list(vectors.float()), position, list(companions(dtype).float()), torch.zeros(1))
    whole = function(block, {"scale": torch.tensor([0.7])}).bfloat16().view(torch.int16)  # type: ignore[operator]
    for cuts in ([0, LENGTH], [0, 1, 3, 20_000, 20_017, LENGTH]):
        for threads in (1, 2, 3):
            assert torch.equal(merge(by_compiler, dtype, scalars, cuts, threads), whole)
            assert torch.equal(merge(eager, dtype, scalars, cuts, threads), whole)


def test_another_dtype_of_companions_is_another_kernel() -> None:
    functions = [BlockFunction(weighted_mean, companion=dtype) for dtype in (torch.float32, torch.bool, torch.uint8)]
    kernels = [Pass(function, NUM_SPECIALISTS, {}, torch.bfloat16, CPU, compiled=False) for function in functions]
    assert len({run._eager.signature for run in kernels}) == 3
