"""Methods that merge singular vectors, on matrices that are small or odd beside the number of specialists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergebench_ray.errors import InputError
from mergebench_ray.methods.iso_c import IsoCTransform
from mergebench_ray.methods.iso_cts import IsoCtsTransform
from mergebench_ray.methods.spectral import SpectralTransform
from mergebench_ray.methods.tsv_m import TsvTransform


def random_vectors(rows: int, columns: int, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(0.01 * (k + 1) * torch.randn(rows, columns, generator=generator)).bfloat16() for k in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "count"), [(2, 5), (3, 5), (8, 5), (8, 3), (64, 5), (20, 4)])
def test_iso_cts_has_as_many_directions_as_there_are_and_all_of_one_length(
    rows: int, count: int, fraction: float
) -> None:
    (new,) = IsoCtsTransform(fraction).of(random_vectors(rows, 96, count))
    lengths = torch.linalg.svdvals(new)
    torch.testing.assert_close(lengths, lengths.mean().expand(rows), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("rows", "count"), [(2, 5), (4, 5), (2, 3), (9, 5)])
def test_tsv_m_keeps_a_direction_of_each_specialist_of_a_matrix_with_few_rows(rows: int, count: int) -> None:
    new = TsvTransform().of(random_vectors(rows, 64, count))
    kept = max(1, rows // count)
    assert [int((torch.linalg.svdvals(one) > 1e-6).sum()) for one in new] == [kept] * count
    if rows >= count:
        return
    # Of more directions than rows a polar factor has all rows orthogonal, and its columns share the length.
    lengths = torch.stack([torch.linalg.svdvals(vector.float())[0] for vector in random_vectors(rows, 64, count)])
    assert all(0 < one.norm() <= length * 1.001 for one, length in zip(new, lengths))


@pytest.mark.parametrize("transform", [TsvTransform(), IsoCTransform(), IsoCtsTransform(0.8)])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_task_vector_that_is_not_finite_is_refused_before_lapack_sees_it(
    transform: SpectralTransform, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    vectors = random_vectors(6, 9)
    vectors[2][3, 4] = value
    with pytest.raises(InputError, match=rf"^{transform.method}: task vectors, or their sum, are not finite"):
        transform.of(vectors)
    assert capfd.readouterr() == ("", "")


def test_where_lapacks_quick_way_gives_up_the_slow_one_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it did, on some machines, with directions of specialists of low rank laid side by side."""
    vectors = random_vectors(20, 96, 3)
    transforms = [IsoCTransform(), IsoCtsTransform(0.5), TsvTransform()]
    expected = [transform.of(vectors) for transform in transforms]

    def gives_up(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("too many repeated singular values")

    monkeypatch.setattr(torch.linalg, "svd", gives_up)
    for transform, before in zip(transforms, expected):
        for one, other in zip(transform.of(vectors), before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
