"""The unbiased estimate of pass@k from n samples, c of them right (Chen et al. 2021, arXiv:2107.03374, section 2.1)."""

from __future__ import annotations

from math import comb

from mergebench_ray.errors import InputError


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of `k` samples drawn without replacement is right: `1 - C(n-c, k) / C(n, k)`.

    Counted in whole numbers and divided once, so it is exact to the last bit for any n.

    Args:
        num_samples: n, the number of samples of one item.
        num_correct: c, how many of them are right.
        k: how many are drawn.

    Raises:
        InputError: `num_correct` is not within 0..n, or `k` not within 1..n.
    """
    if not 0 <= num_correct <= num_samples:
        raise InputError(f"pass@{k}: {num_correct} of {num_samples} samples are right; must be 0..{num_samples}")
    if not 1 <= k <= num_samples:
        raise InputError(
            f"pass@{k}: needs at least {max(k, 1)} samples an item and k >= 1, but there are {num_samples}"
        )
    subsets = comb(num_samples, k)
    return (subsets - comb(num_samples - num_correct, k)) / subsets
