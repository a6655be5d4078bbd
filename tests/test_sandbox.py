"""Programs that nobody has read: what they cannot do, and that no trick makes them pass."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from mergebench_ray.evaluation.sandbox import Limits, run_program, run_programs

QUICK = Limits(wall_seconds=3.0, cpu_seconds=1)

HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "endless loop": "while True: pass",
    "sleeper": "import time; time.sleep(60)",
    "huge output": "while True: print('x' * 10**6)",
    "huge file": "open('x', 'wb').write(b'x' * 10**8)",
    "early os._exit": "import os; os._exit(0)\nassert False",
    "early sys.exit": "import sys; sys.exit(0)\nassert False",
    "printed pass": "print('passed'); print('[]\\npassed')\nassert False",
    "guessed report": (
        "import os\nfor n in range(3, 30):\n    try: os.write(n, b'passed 0')\n    except OSError: pass\nos._exit(0)"
    ),
    "recursion": "def f(): return f()\nf()",
    "killed itself": "import os; os.abort()",
    "syntax error": "def f(:",
    "null byte": "x = '\0'",
    "failing assert": "assert 1 == 2",
    "swallowed interrupt": "try:\n    assert False\nfinally:\n    raise KeyboardInterrupt",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_program_does_not_pass(program: str) -> None:
    result = run_program(program, limits=QUICK)
    assert not result.passed
    assert result.message
    assert "\n" not in result.message


def test_the_pool_goes_on_after_hostile_programs() -> None:
    programs = [*HOSTILE.values(), "assert 1 + 1 == 2"] * 2
    results = run_programs(programs, limits=QUICK)
    assert [result.passed for result in results] == ([False] * len(HOSTILE) + [True]) * 2


def test_timeouts_are_told_from_failures() -> None:
    assert run_program("while True: pass", limits=QUICK).verdict == "timed_out"
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass"
    assert run_program(stubborn, limits=QUICK).verdict == "timed_out"
    assert run_program("import time; time.sleep(60)", limits=Limits(wall_seconds=1.0)).verdict == "timed_out"
    assert run_program("assert False", limits=QUICK).verdict == "failed"
    assert "ZeroDivisionError" in run_program("1 / 0", limits=QUICK).message


def test_a_program_starts_in_an_empty_folder_without_environment_or_packages() -> None:
    checks = "import os, sys\nassert os.listdir('.') == []\nassert not set(os.environ) - {'LC_CTYPE'}\n"
    assert run_program(checks).passed
    assert not run_program("import torch").passed
    assert run_program("import math, re, json, collections, itertools, string").passed


def test_files_of_a_program_are_its_own_and_vanish() -> None:
    program = "import os\nopen('x', 'w').write('y')\nassert os.listdir('.') == ['x']"
    assert [result.passed for result in run_programs([program] * 4)] == [True] * 4


def test_no_programs_no_results() -> None:
    assert run_programs([]) == []


def kernel_isolates() -> bool:
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        return False
    return ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1


needs_kernel = pytest.mark.skipif(not kernel_isolates(), reason="this kernel has no Landlock: only limits protect here")


@needs_kernel
@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['ls'])",
        "import os; os.execv('/bin/ls', ['ls'])",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.fork()",
    ],
)
def test_a_program_cannot_reach_network_or_processes(attempt: str) -> None:
    result = run_program(attempt)
    assert not result.passed
    assert "PermissionError" in result.message


@needs_kernel
@pytest.mark.parametrize(
    "attempt",
    [
        "open({path!r}, 'w')",
        "import os; os.remove({path!r})",
        "import os; os.chmod({path!r}, 0)",
        "import os; os.truncate({path!r}, 0)",
    ],
)
def test_a_program_cannot_change_files_outside_its_folder(attempt: str, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    assert "PermissionError" in run_program(attempt.format(path=str(file))).message
    assert file.read_text() == "kept"
    assert not run_program(f"open({str(tmp_path / 'new')!r}, 'w')").passed
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
