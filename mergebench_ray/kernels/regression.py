"""The linear systems of RegMean: one per group of layers that share their input.

Shapes: d = inputs of the layer, m = its outputs; weights are [m, d], as PyTorch's linear layers hold them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_CONDITION = 1e8
_POWER_STEPS = 30


@dataclass(frozen=True)
class RegressionSystem:
    """What every solution for the same statistics needs, whatever the reduction.

    Differences to the base are solved for, since what is lost to rounding is then a share of the small difference,
    not of the weight.

    Attributes:
        gram: Σ Gₖ, float32 [d, d].
        product: Σ Gₖ (Wₖ − W₀)ᵀ, float32 [d, m].
        diagonal_product: the same with the diagonals of Gₖ alone, float32 [d, m].
        base: W₀ [m, d].
    """

    gram: Tensor
    product: Tensor
    diagonal_product: Tensor
    base: Tensor


def regression_system(grams: Sequence[Tensor], base: Tensor, weights: Sequence[Tensor]) -> RegressionSystem:
    """Add up the statistics of all specialists.

    Args:
        grams: Gₖ, each float32 [d, d].
        base: W₀ [m, d].
        weights: Wₖ, each [m, d].
    """
    total = torch.zeros_like(grams[0])
    product = torch.zeros(base.T.shape, device=base.device)
    diagonal_product = torch.zeros_like(product)
    for gram, weight in zip(grams, weights, strict=True):
        difference = (weight.float() - base.float()).T
        total += gram
        product += gram @ difference
        diagonal_product += gram.diagonal()[:, None] * difference
    return RegressionSystem(total, product, diagonal_product, base)


def solve_regression(system: RegressionSystem, reduction: float, where: str) -> Tensor:
    """W = (Σ G'ₖ)⁻¹ Σ G'ₖ Wₖ, where G' is G with its off-diagonal entries times `reduction`.

    By Cholesky decomposition in float64 of the matrix scaled to a diagonal of ones. Where a diagonal entry is 0, the
    scaled matrix is not positive definite, or its condition number is above `MAX_CONDITION`, by the pseudo-inverse, and
    then a line of the log says so. (Inputs of very different size also give a large condition number before the
    scaling; such a matrix is not singular, and its inverse is its pseudo-inverse.)

    Args:
        system: of one group.
        reduction: 0 to 1.
        where: name of the layer, for the log.

    Returns:
        float32 [m, d].
    """
    diagonal = system.gram.diagonal().double()
    right = reduction * system.product.double() + (1 - reduction) * system.diagonal_product.double()
    base = system.base.double().T
    gram = system.gram.double() * reduction
    gram.diagonal().copy_(diagonal)
    reason = "a diagonal entry is 0"
    if bool((diagonal > 0).all()):
        scale = diagonal.rsqrt()[:, None]
        scaled = scale * gram * scale.T
        factor, failed = torch.linalg.cholesky_ex(scaled)
        if int(failed):
            reason = "it is not positive definite"
        elif _condition_bound(len(gram), reduction) > MAX_CONDITION < condition_number(scaled, factor):
            reason = f"its condition number is above {MAX_CONDITION:.0e}"
        else:
            return (base + scale * torch.cholesky_solve(scale * right, factor)).float().T.contiguous()
    logger.warning("%s: the Gram matrix is singular (%s); solved with the pseudo-inverse", where, reason)
    # What float32 sums cannot tell from nothing is nothing.
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=len(gram) * torch.finfo(torch.float32).eps)
    return (inverse @ (right + gram @ base)).float().T.contiguous()


def _condition_bound(size: int, reduction: float) -> float:
    """A bound for the scaled matrix that costs nothing.

    Its eigenvalues add up to `size`; and a Gram matrix has no negative ones, to which 1 - reduction is added.
    """
    return size / (1 - reduction) if reduction < 1 else torch.inf


def condition_number(matrix: Tensor, factor: Tensor) -> float:
    """Largest over smallest eigenvalue of a positive definite matrix [d, d], by power iteration on it and its inverse.

    An estimate from below, as near as the leading eigenvalues are apart; a decomposition would cost many times the
    solution itself.

    Args:
        matrix: the matrix, float64.
        factor: its lower Cholesky factor.
    """
    start = torch.linspace(1.0, 2.0, len(matrix), dtype=matrix.dtype, device=matrix.device)[:, None]
    largest = _growth(lambda vector: matrix @ vector, start)
    smallest = _growth(lambda vector: torch.cholesky_solve(vector, factor), start)
    return largest * smallest


def _growth(apply: Callable[[Tensor], Tensor], vector: Tensor) -> float:
    """Factor by which repeated application lengthens a vector."""
    growth = 0.0
    for _ in range(_POWER_STEPS):
        vector = apply(vector / torch.linalg.vector_norm(vector))
        growth = float(torch.linalg.vector_norm(vector))
    return growth
