"""Programs that nobody has read: right ones pass, wrong ones do not, and the pool takes them as they come."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import pytest

from mergebench_ray.sandbox.runner import Limits, Program, SandboxPool, check_of, run_program, run_programs
from python_problems import PROBLEMS

QUICK = Limits(wall_seconds=3.0, cpu_seconds=1)
ADD = Program("def add(a, b): return a + b", check_of("assert add(1, 2) == 3", "add"))


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    with SandboxPool(limits=QUICK) as pool:
        yield pool


@pytest.fixture(scope="module")
def numpy_pool() -> Iterator[SandboxPool]:
    with SandboxPool(modules=("numpy",)) as pool:  # importing it takes a second, on a busy machine several
        yield pool


def test_canonical_solutions_in_the_form_of_humaneval_pass_and_empty_ones_do_not() -> None:
    checks = [
        check_of(f"{one.test}\ncheck({one.entry_point})", one.entry_point, helpers=one.prompt) for one in PROBLEMS
    ]
    right = [Program(one.prompt + one.canonical_solution, check) for one, check in zip(PROBLEMS, checks)]
    wrong = [Program(one.prompt + "    return None\n", check) for one, check in zip(PROBLEMS, checks)]
    results = run_programs([*right, *wrong])
    assert [(one.passed, one.message) for one in results[: len(right)]] == [(True, "")] * len(right)
    assert not any(one.passed for one in results[len(right) :])


def test_a_wrong_result_fails_whatever_the_program_says(pool: SandboxPool) -> None:
    assert pool.submit(ADD).result().passed
    result = pool.submit(Program("def add(a, b): return a - b\nprint('passed')", ADD.check)).result()
    assert result.outcome == "failed"
    assert result.message == "AssertionError: "


@pytest.mark.parametrize(
    "value",
    [
        "[1, -2.5, 'a\\udc80ß', None, True, b'xy', 2 + 3j, range(1, 9, 2)]",
        "{(1, 2): {3, 4}, 'k': frozenset({'x'}), None: [[], (), {}]}",
        "(7 ** 9000, -2 ** 63, float('inf'))",
        "(__import__('decimal').Decimal('1.10'), __import__('fractions').Fraction(1, 3))",
        "__import__('collections').Counter('abba')",
    ],
)
def test_plain_data_crosses_unchanged_in_both_directions(value: str, pool: SandboxPool) -> None:
    program = f"def make(): return {value}\ndef same(x): return x == {value}, x"
    check = check_of(f"v = {value}\nassert make() == v\nassert same(v) == (True, v)\nassert same(x=v)[1] == v")
    named = check.replace("make()", "untrusted.make()").replace("same(", "untrusted.same(")
    assert pool.submit(Program(program, named)).result().message == ""


def test_a_result_that_is_no_plain_data_equals_nothing(pool: SandboxPool) -> None:
    program = "class Yes:\n    def __eq__(self, other): return True\ndef add(a, b): return Yes()"
    assert not pool.submit(Program(program, ADD.check)).result().passed
    assert pool.submit(Program(program, "assert 'type Yes' in repr(untrusted.add(1, 2))")).result().passed


def test_errors_of_a_function_arrive_as_their_own_class(pool: SandboxPool) -> None:
    program = "class Own(Exception): pass\ndef root(x): raise ValueError('no root')\ndef own(): raise Own('mine')"
    check = "try:\n    untrusted.root(1)\nexcept ValueError as error:\n    assert str(error) == 'no root'\n"
    assert pool.submit(Program(program, check + "else:\n    assert False")).result().passed
    assert pool.submit(Program(program, "untrusted.own()")).result().message == "RuntimeError: Own: mine"
    assert "KeyError" in pool.submit(Program(program, "untrusted.missing()")).result().message


def test_a_program_that_never_loads_or_answers_fails_with_a_reason(pool: SandboxPool) -> None:
    for program, reason in (
        ("def f(:", "SyntaxError"),
        ("x = '\0'", "null bytes"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def add(a, b): raise SystemExit", "RuntimeError: SystemExit"),
        ("import os\ndef add(a, b): os._exit(3)", "ended early with status 3"),
        ("import os\ndef add(a, b): os.closerange(0, 64); os.execv('/bin/true', [])", "ended early with status"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "E"),
    ):
        result = pool.submit(Program(program, ADD.check)).result()
        assert (result.outcome, reason in result.message) == ("failed", True), result
        assert "\n" not in result.message


@pytest.mark.slow
def test_timeouts_are_told_from_failures(pool: SandboxPool) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass"
    sleeper = pool.submit("import time; time.sleep(60)", limits=Limits(wall_seconds=1.0))
    endless = Program("def add(a, b):\n    while True: pass", ADD.check)
    for future in [sleeper, *map(pool.submit, ["while True: pass", stubborn, endless])]:
        assert future.result().outcome == "timed_out"
    assert pool.submit(Program("", "while True: pass")).result().outcome == "timed_out"


def test_a_program_starts_in_an_empty_folder_without_environment_or_packages(pool: SandboxPool) -> None:
    checks = "import os, sys\nassert os.listdir('.') == []\nassert not set(os.environ) - {'LC_CTYPE'}\n"
    assert pool.submit(checks).result().passed
    assert "ModuleNotFoundError" in pool.submit("import torch").result().message
    assert pool.submit("import math, re, json, collections, itertools, string, heapq, datetime").result().passed


def test_a_program_finds_no_further_module_of_the_sandbox(pool: SandboxPool) -> None:
    program = "try:\n    import sandbox.runner\nexcept ModuleNotFoundError:\n    pass"
    assert pool.submit(program).result().passed


def test_packages_can_be_given_to_programs_and_checks() -> None:
    program = Program("import numpy\ndef mean(x): return numpy.mean(x)", check_of("assert mean([1, 2]) == 1.5", "mean"))
    check = (
        "import numpy\nassert numpy.allclose(numpy.random.default_rng(0).normal(size=3) * 0, untrusted.mean([0, 0]))"
    )
    results = run_programs([program, Program(program.text, check), "import pandas"], modules=("numpy",), num_workers=1)
    assert [result.message for result in results] == ["", "", "ModuleNotFoundError: No module named 'pandas'"]
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        SandboxPool(modules=("no_such_package",))


def test_results_of_numpy_compare_as_if_the_check_had_made_them() -> None:
    program = """
import numpy
def one(): return numpy.array([3])
def two(): return numpy.array([1, 2])
def inside(): return [numpy.array([[0.5]]), numpy.array(["a"])]
def scalar(): return numpy.float64(0.5)
def truth(): return numpy.bool_(True)
def objects(): return numpy.array([object()])
def same(x): return x
"""
    check = """
import numpy
assert one() == 3 and type(one()) is numpy.ndarray
assert inside() == [0.5, "a"]
assert type(scalar()) is numpy.float64 and scalar() == 0.5
assert truth() == True
assert (same(numpy.eye(3)) == numpy.eye(3)).all() and same(numpy.eye(3)).shape == (3, 3)
assert objects() != 0
try:
    assert two() == [1, 2]
except ValueError:
    pass
else:
    raise AssertionError("an array of two has no truth")
"""
    whole = Program(program, check_of(check, "one", "two", "inside", "scalar", "truth", "objects", "same"))
    assert run_programs([whole], modules=("numpy",))[0].message == ""


@pytest.mark.parametrize("kind", ["O8", "V8", "<f8,<f8", "", "f", 5, None, "<f0", "<f8)"])
def test_a_made_up_array_ends_its_program(kind: object, numpy_pool: SandboxPool) -> None:
    reply = json.dumps({"tuple": ["returned", {"array": [kind, [1], "00" * 8, False]}]})
    write = f"os.write(n, {reply.encode()!r} + b'\\n')"
    program = f"import os\nfor n in range(3, 64):\n    try: {write}\n    except OSError: pass"
    result = numpy_pool.submit(Program(program, "raise SystemExit")).result()
    assert result.message == "stopped answering"


def test_pandas_can_be_given_to_programs() -> None:
    program = """
import io, pandas
def total(table): return pandas.read_csv(io.StringIO(table)).groupby("a")["b"].sum().to_dict()
def hour(): return pandas.Timestamp("2020-01-01 12:00").tz_localize("Europe/Berlin").tz_convert("UTC").hour
"""
    check = check_of("assert total('a,b\\nx,1\\nx,2') == {'x': 3}\nassert hour() == 11", "total", "hour")
    limits = Limits(wall_seconds=30.0, cpu_seconds=20, memory_bytes=2**30)
    results = run_programs([Program(program, check)], modules=("numpy", "pandas"), limits=limits)
    assert results[0].message == ""


def test_the_end_of_an_iteration_ends_none_of_the_check(pool: SandboxPool) -> None:
    check = "for got, wanted in zip(map(untrusted.add, [1]), [3]): assert got == wanted"
    assert not pool.submit(Program("def add(a): raise StopIteration", check)).result().passed


def test_files_of_a_program_are_its_own_and_vanish() -> None:
    program = "import os\nopen('x', 'w').write('y')\nassert os.listdir('.') == ['x']"
    assert [result.passed for result in run_programs([program] * 4)] == [True] * 4


@pytest.mark.slow
def test_a_quick_program_does_not_wait_for_a_slow_one() -> None:
    with SandboxPool(num_workers=2, limits=QUICK) as pool:
        slow, quick = pool.submit("import time; time.sleep(60)"), pool.submit(ADD)
        assert wait([slow, quick], return_when=FIRST_COMPLETED).done == {quick}
        assert slow.result().outcome == "timed_out"


def test_the_pool_goes_on_when_its_process_is_killed() -> None:
    with SandboxPool(num_workers=1) as pool:
        assert pool.submit(ADD).result().passed
        os.killpg(pool._launchers[0]._process.pid, signal.SIGKILL)
        assert pool.submit(ADD).result().passed


def test_a_closed_pool_leaves_no_folder_and_no_waiting_program() -> None:
    with SandboxPool(num_workers=1, limits=QUICK) as pool:
        futures = [pool.submit(ADD) for _ in range(50)]
        futures[0].result()
        folder = Path(pool._launchers[0]._folder.name)
        assert folder.is_dir()
    assert not folder.exists()
    assert all(future.cancelled() or future.result().passed for future in futures)


def test_a_program_and_a_check_of_any_length_are_taken() -> None:
    large = "x = [" + "1, " * 200_000 + "]\n"
    program = Program(f"{large}def size(): return len(x)", f"{large}assert untrusted.size() == len(x)")
    assert run_program(program, limits=Limits(cpu_seconds=10, wall_seconds=20.0)).message == ""


def test_no_programs_no_results() -> None:
    assert run_programs([]) == []
