"""Which modules write and read the vectors inside a network, by their names."""

from __future__ import annotations

import pytest

from mergebench_ray.families import family_of

WORDS = family_of("llama").vectors


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("input_layernorm", True),
        ("ln_f", True),
        ("final_layer_norm", True),
        ("q_norm", False),
        ("kv_a_layernorm", False),
        ("dt_layernorm", False),
        ("gate_proj", False),
    ],
)
def test_norms_of_the_residual_stream_are_told_from_norms_inside(leaf: str, expected: bool) -> None:
    assert WORDS.is_stream_norm(leaf) is expected


def test_a_low_rank_vector_is_known_by_each_module_that_touches_it() -> None:
    for writer, norm, reader in [
        ("q_a_proj", "q_a_layernorm", "q_b_proj"),
        ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"),
    ]:
        assert WORDS.latent_of(writer) == WORDS.latent_of(norm) == WORDS.latent_of(reader) is not None
    assert WORDS.latent_of("q_proj") is None


def test_no_module_both_reads_and_writes_the_residual_stream() -> None:
    assert WORDS.readers.isdisjoint(WORDS.writers | WORDS.attention_writers)
    assert WORDS.values in WORDS.readers
    assert all(one.writer in WORDS.readers for one in WORDS.latent)
