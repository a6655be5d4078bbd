"""How calibration finds its way in transformers' own model."""

from __future__ import annotations

from types import SimpleNamespace

from mergebench_ray.families import family_of

DECODER = family_of("llama").decoder


def test_scores_that_are_soft_capped_need_the_plain_attention() -> None:
    assert DECODER.attention(SimpleNamespace(attn_logit_softcapping=50.0)) == "eager"
    assert DECODER.attention(SimpleNamespace(attn_logit_softcapping=None)) == "sdpa"
    assert DECODER.attention(SimpleNamespace()) == "sdpa"
