"""Merges are compiled while something else happens, by processes that never outlive it."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
import torch

from mergebench_ray.bank import compiled_ahead
from mergebench_ray.bank.rehearsal import not_compiled_yet
from mergebench_ray.kernels import Pass
from mergebench_ray.methods import TensorPlace, get_method, parse_parameters

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("no_kernels_yet")]

NAMES = ["a", "b"]
MERGES: list[tuple[str, dict[str, Any]]] = [
    ("model_soup", {}),
    ("task_arithmetic", {"scaling_coef": {"a": 0.1, "b": [0.2, 0.3]}}),
]


def test_a_merge_compiled_ahead_needs_no_compiler_any_more_and_no_process_is_begun_for_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, parameters = MERGES[-1]  # one is enough: it takes a compiler a quarter of a minute
    others = _children()
    # A merge of one specialist cannot be rehearsed with two; what comes after it in the same process is.
    with compiled_ahead([("slerp", {}), ("slerp", {}), (name, parameters)], NAMES):
        assert _children() - others
    with compiled_ahead([(name, parameters)], NAMES):
        assert not _children() - others
    monkeypatch.setenv("CXX", "no-such-compiler")
    method, checked = get_method(name), parse_parameters(name, parameters)
    scalars = method.scalars(checked, None, TensorPlace("w", 0, 2), NAMES)
    assert Pass(method.kernel(checked), 2, scalars, torch.bfloat16, torch.device("cpu")).is_compiled


def test_only_kernels_that_are_missing_are_compiled_ahead_and_nothing_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [name for name, _ in not_compiled_yet(MERGES, NAMES)] == [name for name, _ in MERGES]
    # What cannot be rehearsed is left to who merges, who also tells why.
    assert not_compiled_yet([("slerp", {})], NAMES) == [("slerp", {})]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not_compiled_yet(MERGES, NAMES) == []


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_an_error_meanwhile_ends_the_compiler_too() -> None:
    others = _children()
    started: list[psutil.Process] = []

    def interrupt_once_it_compiles() -> None:
        deadline = time.monotonic() + 120
        while len(started) < 2:
            assert time.monotonic() < deadline, "no compiler was started"
            time.sleep(0.05)
            started[:] = [*(_children() - others)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), compiled_ahead(MERGES, NAMES):
        interrupt_once_it_compiles()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
