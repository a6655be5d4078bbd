"""Merges are compiled while something else happens, by processes that never outlive it."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
import torch

from mergebench_ray.bank import compiled_ahead, rehearsal
from mergebench_ray.kernels import Pass
from mergebench_ray.methods import TensorPlace, get_method, parse_parameters

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("no_kernels_yet")]

NAMES = ["a", "b"]
MERGES: list[tuple[str, dict[str, Any]]] = [
    ("model_soup", {}),
    ("task_arithmetic", {"scaling_coef": {"a": 0.1, "b": [0.2, 0.3]}}),
]


def test_a_merge_compiled_ahead_needs_no_compiler_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    name, parameters = MERGES[-1]  # one is enough: each takes a compiler a quarter of a minute
    with compiled_ahead([(name, parameters)], NAMES):
        pass
    monkeypatch.setenv("CXX", "no-such-compiler")
    method, checked = get_method(name), parse_parameters(name, parameters)
    scalars = method.scalars(checked, None, TensorPlace("w", 0, 2), NAMES)
    assert Pass(method.kernel(checked), 2, scalars, torch.bfloat16, torch.device("cpu")).is_compiled


def test_every_merge_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(rehearsal, "_compile", lambda merge, specialists: asked.append(merge[0]))
    rehearsal._compile_all(MERGES, NAMES)
    assert sorted(asked) == sorted(name for name, _ in MERGES)


def test_an_error_meanwhile_ends_the_compiler_too() -> None:
    others = set(psutil.Process().children(recursive=True))
    started: list[psutil.Process] = []

    def interrupt_once_it_compiles() -> None:
        deadline = time.monotonic() + 120
        while len(started) < 2:
            assert time.monotonic() < deadline, "no compiler was started"
            time.sleep(0.05)
            started[:] = [one for one in psutil.Process().children(recursive=True) if one not in others]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), compiled_ahead(MERGES, NAMES):
        interrupt_once_it_compiles()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
