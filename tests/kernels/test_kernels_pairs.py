"""Entries read two at a time, as 32-bit words, give the bits of entries read one at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mergebench_ray.kernels import BlockFunction, Pass, Segment
from mergebench_ray.kernels.forms import Form
from mergebench_ray.kernels.pairs import (
    WORD,
    as_words,
    first_entries,
    reads_pairs,
    rounded_words,
    second_entries,
)
from mergebench_ray.methods.dare import Dare

CPU = torch.device("cpu")
LENGTH = 70_001
SCALARS = {
    "coefficient": [2.0, -1.5, 0.5],
    "drop_below": [0.0],
    "tensor_keys": [5, 6, 7],
    "specialist_keys": [3, 9, 4],
}
DARE = BlockFunction(Dare.merge_block, uses_position=True)


def every_bf16() -> Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def test_the_two_halves_of_words_are_the_entries_that_come_first_and_second() -> None:
    entries = every_bf16()
    words = entries.view(WORD)
    assert torch.equal(first_entries(words).view(torch.int32), entries[0::2].float().view(torch.int32))
    assert torch.equal(second_entries(words).view(torch.int32), entries[1::2].float().view(torch.int32))


def test_words_are_rounded_as_torch_rounds_to_bf16() -> None:
    # Every bf16 number with the low halves that decide: just above and below a tie, ties themselves, all ones.
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    bits = (torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16).unsqueeze(1) | low
    values = bits.flatten().view(torch.float32)
    values = values[~values.isnan()]
    assert bool(values.isinf().any())
    rounded = rounded_words(values, values.flip(0)).view(torch.bfloat16)
    assert torch.equal(rounded[0::2].view(torch.int16), values.bfloat16().view(torch.int16))
    assert torch.equal(rounded[1::2].view(torch.int16), values.flip(0).bfloat16().view(torch.int16))
    undefined = torch.tensor([float("inf")]) * 0
    assert bool(rounded_words(undefined, undefined).view(torch.bfloat16).isnan().all())


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 128, (0, 64)),
        (1, 128, (1, 49)),
        (0, 127, (0, 48)),
        (3, 68, (2, 34)),
        (3, 67, None),
        (7, 7, None),
        (4, 67, None),
    ],
)
def test_whole_registers_of_words_lie_within_the_entries(
    start: int, stop: int, expected: tuple[int, int] | None
) -> None:
    words = Form.WORDS.whole(start, stop)
    assert (words.start, words.stop) == expected if expected else not words


def test_memory_that_begins_between_words_has_none() -> None:
    entries = torch.zeros(9, dtype=torch.bfloat16)
    words = as_words([entries, entries[2:]])
    assert words is not None
    assert [len(array) for array in words] == [4, 3]
    assert as_words([entries, entries[1:]]) is None


@pytest.mark.parametrize(("architecture", "expected"), [("x86_64", True), ("aarch64", False)])
def test_pairs_are_for_x86(architecture: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": architecture})
    assert reads_pairs(DARE, torch.bfloat16, CPU) == expected


def test_pairs_are_for_bf16_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    with_companions = BlockFunction(Dare.merge_block, companion=torch.float32)
    assert not reads_pairs(with_companions, torch.bfloat16, CPU)
    assert not reads_pairs(DARE, torch.float32, CPU)
    assert not reads_pairs(DARE, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 64, (0, 64)), (1, 64, (16, 64)), (16, 63, (16, 48)), (0, 31, None), (1, 47, None), (17, 64, (32, 64))],
)
def test_a_gpu_gets_multiples_of_sixteen_entries_from_sixteen_bytes(
    start: int, stop: int, expected: tuple[int, int] | None
) -> None:
    entries = Form.ALIGNED.whole(start, stop)
    assert (entries.start, entries.stop) == expected if expected else not entries


def test_a_gpu_gets_no_memory_that_begins_between_sixteen_bytes() -> None:
    entries = torch.zeros(64, dtype=torch.bfloat16)
    assert Form.ALIGNED.arrays([entries, entries[8:]]) is not None
    assert Form.ALIGNED.arrays([entries, entries[4:]]) is None


@pytest.mark.compiler
@pytest.mark.usefixtures("compiled_here")
def test_every_form_gives_the_same_bits_for_every_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for form in Form:
        monkeypatch.setattr(Form, "of", lambda *_, form=form: form)
        runs.append(Pass(DARE, 3, SCALARS, torch.bfloat16, CPU, callers=2))
        assert runs[-1].is_compiled
    runs.append(Pass(DARE, 3, SCALARS, torch.bfloat16, CPU, compiled=False))
    whole = dare(runs[0], [0, LENGTH])
    for cuts in ([0, LENGTH], [0, 1, 3, 40, 20_000, 20_017, 20_051, LENGTH]):
        for run in runs:
            for threads in (1, 2):
                assert torch.equal(dare(run, cuts, threads), whole)
            assert torch.equal(dare(run, cuts, begins=1), whole)


def dare(run: Pass, cuts: list[int], threads: int = 1, begins: int = 0) -> Tensor:
    """Merge, in arrays that begin so many entries into their memory."""
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(5, LENGTH, generator=generator) * 0.1).bfloat16()
    base, *vectors, out = (torch.cat([row[:begins], row])[begins:] for row in rows)
    segments = [Segment(start, stop, start, SCALARS) for start, stop in itertools.pairwise(cuts)]
    run.run(base, vectors, segments, out, threads)
    return out.view(torch.int16)
