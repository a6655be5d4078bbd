"""Calibration samples: what is cut is counted, padding is on the right, no sample is lost or seen twice."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from mergebench_ray.calibration.samples import BATCH_TOKENS, Encoded, Sample, batches, encode_samples, samples_digest
from mergebench_ray.errors import InputError
from tiny_models import tiny_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token per byte."""
    return AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("llama")), trust_remote_code=False)


def test_samples_longer_than_the_context_are_cut_on_the_right_and_counted(tokenizer: Any) -> None:
    encoded, num_cut = encode_samples(tokenizer, [Sample("abc", "def"), Sample("abcdef", "g"), Sample("a", "b")], 5)
    assert [tokenizer.decode(list(sample.ids)) for sample in encoded] == ["abcde", "abcde", "ab"]
    assert [sample.prompt_length for sample in encoded] == [3, 5, 1]
    assert num_cut == 2


def test_a_prompt_that_begins_with_bos_gets_no_second_one(tokenizer: Any) -> None:
    class WithBos:
        bos_token = tokenizer.bos_token

        def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
            return tokenizer(self.bos_token + text if add_special_tokens else text)

    (templated, plain), _ = encode_samples(WithBos(), [Sample("<s>a", "b"), Sample("a", "b")], 100)
    assert templated == plain
    assert templated.ids.count(tokenizer.bos_token_id) == 1


def test_an_empty_sample_is_refused_by_number(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="sample 1 is empty"):
        encode_samples(tokenizer, [Sample("a", ""), Sample("", "")], 10)


def test_batches_hold_every_sample_once_padded_on_the_right() -> None:
    encoded = [Encoded(tuple(range(10 * length, 11 * length)), 1) for length in (4, 1, 3, 7, 2)]
    found = []
    for batch in batches(encoded, 2, pad_id=0):
        for ids, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist()):
            length = sum(mask)
            assert mask == [1] * length + [0] * (len(mask) - length)
            assert not any(ids[length:])
            found.append(tuple(ids[:length]))
    assert found == sorted((sample.ids for sample in encoded), key=len)


def test_batches_of_long_samples_are_smaller() -> None:
    encoded = [
        Encoded(tuple(range(length)), 1) for length in (BATCH_TOKENS + 1, BATCH_TOKENS // 2, BATCH_TOKENS // 2, 1)
    ]
    shapes = [tuple(batch.input_ids.shape) for batch in batches(encoded, 8, pad_id=0)]
    assert shapes == [(2, BATCH_TOKENS // 2), (1, BATCH_TOKENS // 2), (1, BATCH_TOKENS + 1)]


def test_the_digest_is_that_of_the_texts_and_their_order() -> None:
    one, two = Sample("a", "bc"), Sample("ab", "c")
    assert samples_digest([one, two]) == samples_digest([Sample("a", "bc"), Sample("ab", "c")])
    assert len({samples_digest(samples) for samples in ([one], [two], [one, two], [two, one])}) == 4
