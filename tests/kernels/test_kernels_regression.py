"""RegMean's linear systems: equal to the plain formula, whatever the scale of the inputs, and safe where singular."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

import naive_calibrated as naive
from mergebench_ray.kernels.regression import condition_number, regression_system, solve_regression

INPUTS, OUTPUTS = 24, 10


def problem(rows: int = 200, spread: float = 1.0) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Gram matrices of three specialists, the base's weight and theirs; inputs of sizes from 1 / spread to spread."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-1, 1, INPUTS, base=spread) if spread > 1 else torch.ones(INPUTS)
    inputs = [torch.randn(rows, INPUTS, generator=generator) * sizes for _ in range(3)]
    base = torch.randn(OUTPUTS, INPUTS, generator=generator)
    weights = [base + 0.1 * torch.randn(OUTPUTS, INPUTS, generator=generator) for _ in range(3)]
    return [x.T @ x / rows for x in inputs], base, weights


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("reduction", [0.0, 0.1, 0.9, 1.0])
def test_solution_equals_the_formula(reduction: float) -> None:
    grams, base, weights = problem()
    solved = solve_regression(regression_system(grams, base, weights), reduction, "layer")
    assert relative_error(solved, naive.solve(grams, weights, reduction)) < 1e-5


def test_specialists_that_agree_are_returned_exactly() -> None:
    grams, base, _ = problem(spread=1e3)
    solved = solve_regression(regression_system(grams, base, [base, base, base]), 0.9, "layer")
    assert torch.equal(solved, base)


def test_inputs_of_very_different_size_are_not_taken_for_singular(caplog: pytest.LogCaptureFixture) -> None:
    grams, base, weights = problem(spread=1e4)
    assert torch.linalg.cond(sum(grams).double()) > 1e8
    with caplog.at_level(logging.WARNING):
        solved = solve_regression(regression_system(grams, base, weights), 0.9, "layer")
    assert not caplog.text
    scaled = [gram.double() * 0.9 for gram in grams]
    for matrix, gram in zip(scaled, grams):
        matrix.diagonal().copy_(gram.diagonal())
    right = sum(matrix @ weight.double().T for matrix, weight in zip(scaled, weights))
    assert relative_error(solved, torch.linalg.solve(sum(scaled), right).T.float()) < 1e-5


@pytest.mark.parametrize("kind", ["fewer rows than inputs", "an input that is always zero"])
def test_a_singular_matrix_gets_the_pseudo_inverse_and_a_line_that_names_the_layer(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    grams, base, weights = problem(rows=4 if kind.startswith("fewer") else 200)
    if kind.startswith("an input"):
        for gram in grams:
            gram[3], gram[:, 3] = 0, 0
    with caplog.at_level(logging.WARNING):
        solved = solve_regression(regression_system(grams, base, weights), 1.0, "layers.7.mlp.up_proj")
    assert "layers.7.mlp.up_proj" in caplog.text
    assert relative_error(solved, naive.solve(grams, weights, 1.0)) < 1e-4


def test_condition_number_is_near_the_exact_one() -> None:
    grams, _, _ = problem(rows=40)
    matrix = sum(grams).double()
    found = condition_number(matrix, torch.linalg.cholesky(matrix))
    assert 0.5 < found / float(torch.linalg.cond(matrix)) < 1.001
