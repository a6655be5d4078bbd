"""Singular vectors of task vectors, merged: whole matrices by LAPACK, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def tsv_merge(matrices: list[Tensor]) -> list[Tensor]:
    """TSV-Merge: the first ⌊r/K⌋ singular triplets of each matrix, or one, made orthogonal to those of the others.

    Args:
        matrices: K times [rows, columns], of which r is the smaller.

    Returns:
        what is to be added up, one [rows, columns] for each.
    """
    count, kept = len(matrices), max(1, min(matrices[0].shape) // len(matrices))
    triplets = [singular_triplets(matrix) for matrix in matrices]
    left = polar_factor(torch.cat([u[:, :kept] for u, _, _ in triplets], 1)).chunk(count, 1)
    right = polar_factor(torch.cat([v[:kept] for _, _, v in triplets], 0)).chunk(count, 0)
    return [u * s[:kept] @ v for u, (_, s, _), v in zip(left, triplets, right, strict=True)]


def isotropic(matrix: Tensor) -> Tensor:
    """Iso-C: a matrix with all its singular values replaced by their mean."""
    u, s, v = singular_triplets(matrix)
    whole: Tensor = s.mean() * (u @ v)
    return whole


def isotropic_in_common_and_own(matrices: list[Tensor], common_share: float) -> Tensor:
    """Iso-CTS: the first directions of the sum, and of each matrix the first ones beside those, all of one length.

    Args:
        matrices: K times [rows, columns].
        common_share: of the directions, how many are the sum's; the rest is for all matrices alike, rounded to whole
            ones as long as there are so many.
    """
    count, rank = len(matrices), min(matrices[0].shape)
    own = min(round((rank - int(rank * common_share)) / count), rank // count)
    common = rank - count * own
    u, s, v = singular_triplets(torch.stack(matrices).sum(0))
    u, s, v = u[:, :common], s[:common], v[:common]
    triplets = [singular_triplets(matrix - u @ (u.T @ matrix)) for matrix in matrices]
    left = polar_factor(torch.cat([*(one[:, :own] for one, _, _ in triplets), u], 1))
    right = polar_factor(torch.cat([*(one[:own] for _, _, one in triplets), v], 0))
    return torch.cat([*(one[:own] for _, one, _ in triplets), s]).mean() * (left @ right)


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthogonal columns, or, where there are more of these than rows, rows, of length 1."""
    u, _, v = singular_triplets(matrix)
    factor: Tensor = u @ v
    return factor


def singular_triplets(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left singular vectors [rows, r], singular values [r], right singular vectors [r, columns]; r is the smaller."""
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError:  # LinAlgError, which torch's types do not have
        import scipy.linalg

        # Divide and conquer may give up where many values are nearly the same, as those of directions laid side by
        # side are. QR iterations take several times as long and do not.
        found = scipy.linalg.svd(matrix.double().numpy(), full_matrices=False, lapack_driver="gesvd")
        left, values, right = (torch.from_numpy(part).to(matrix.dtype) for part in found)
    return left, values, right
